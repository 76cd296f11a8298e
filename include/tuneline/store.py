"""The store: whole objects under a URI, the same on a directory and on S3.

Writes are whole (a reader sees the old object or the new one), every object
carries its SHA-256, every read recomputes it, and `once=True` refuses to
replace what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.evidence import FileRef

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = 1 << 20


class CorruptObject(TunelineError):
    """The bytes of an object are not those that were written."""


class AlreadyThere(TunelineError):
    """A write-once object exists."""


class NotThere(UserError):
    """The object does not exist."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Store(ABC):
    """Objects by key (a relative POSIX path) under one root URI."""

    uri: str

    def uri_of(self, key: str) -> str:
        """The full URI of a key."""
        return f"{self.uri}/{key}"

    def key_of(self, uri: str) -> str:
        """The key of a full URI of this store.

        Raises:
            UserError: the URI lies elsewhere.
        """
        if not uri.startswith(self.uri + "/"):
            raise UserError(f"{uri} does not lie in the store {self.uri}")
        return uri[len(self.uri) + 1 :]

    @abstractmethod
    def put_file(self, key: str, path: Path, *, once: bool = False) -> FileRef:
        """Write a file as one object.

        Raises:
            AlreadyThere: `once` and the object exists.
            RetryableError: the disk is full or the server failed.
        """

    @abstractmethod
    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """Copy an object to a local file, its hash recomputed on the way.

        Args:
            key: the object.
            destination: the local file, written whole.
            sha256: the hash that the caller expects; without it the stored one is checked.

        Raises:
            NotThere: no such object.
            CorruptObject: the hash differs.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    @abstractmethod
    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below a prefix that ends at a path boundary, in order."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Delete every object below a prefix."""

    def put_bytes(self, key: str, data: bytes, *, once: bool = False) -> FileRef:
        """Write bytes as one object; see `put_file`."""
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            path = Path(scratch) / "object"
            path.write_bytes(data)
            return self.put_file(key, path, once=once)

    def get_bytes(self, key: str, *, sha256: str | None = None) -> bytes:
        """Read a small object whole; see `get_file`."""
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            path = Path(scratch) / "object"
            self.get_file(key, path, sha256=sha256)
            return path.read_bytes()


def _check(uri: str, got: str, *expected: str) -> None:
    if got not in expected:
        raise CorruptObject(
            f"{uri} is corrupt: its SHA-256 is {got}, expected {' or '.join(expected)}; "
            "restore it from a backup or run the step again that wrote it"
        )


class FileStore(Store):
    """A store in a directory (`file:///dir`).

    The hash of `name` lies beside it in `.name.sha256`. While an object is being
    replaced that file holds the old and the new hash, so that a crash between the
    two renames leaves an object that still verifies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not key or ".." in Path(key).parts or Path(key).is_absolute():
            raise UserError(f"{key!r} is not a key: use a relative path without '..'")
        return path

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out between the two renames, across processes."""
        with (self.root / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_name(f".{path.name}.sha256")

    def put_file(self, key: str, path: Path, *, once: bool = False) -> FileRef:
        """See `Store.put_file`."""
        target = self._path(key)
        sidecar = self._sidecar(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if once and target.exists():
                raise AlreadyThere(f"{self.uri_of(key)} is written once and exists already")
            staged = _stage_beside(target, lambda staged: shutil.copyfile(path, staged))
            digest = sha256_file(staged)
            with self._lock():
                if once and target.exists():
                    staged.unlink()
                    raise AlreadyThere(f"{self.uri_of(key)} is written once and exists already")
                _write_whole(sidecar, "\n".join([*_hashes(sidecar), digest]) + "\n")
                staged.replace(target)
                _write_whole(sidecar, digest + "\n")
        except OSError as error:
            raise RetryableError(
                f"cannot write {self.uri_of(key)}: {error.strerror or error}"
            ) from error
        return FileRef(
            name=Path(key).name, uri=self.uri_of(key), sha256=digest, bytes=target.stat().st_size
        )

    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """See `Store.get_file`."""
        source = self._path(key)
        sidecar = self._sidecar(source)
        if not source.is_file():
            raise NotThere(f"{self.uri_of(key)} does not exist")
        # A writer may replace the object while it is copied: a hash that was valid before
        # or after the copy is valid.
        known = _hashes(sidecar)
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            staged = _stage_beside(destination, lambda staged: shutil.copyfile(source, staged))
        except OSError as error:
            raise RetryableError(
                f"cannot read {self.uri_of(key)}: {error.strerror or error}"
            ) from error
        digest = sha256_file(staged)
        expected = [sha256] if sha256 else [*known, *_hashes(sidecar)]
        if digest not in expected:
            staged.unlink()
            _check(self.uri_of(key), digest, *(expected or ["unknown (no hash file)"]))
        staged.replace(destination)
        return FileRef(
            name=source.name, uri=self.uri_of(key), sha256=digest, bytes=destination.stat().st_size
        )

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def keys(self, prefix: str) -> Iterator[str]:
        """See `Store.keys`."""
        root = self._path(prefix.rstrip("/")) if prefix else self.root
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        shutil.rmtree(self._path(prefix.rstrip("/")), ignore_errors=True)


class S3Store(Store):
    """A store in a bucket (`s3://bucket/prefix`), any S3-compatible server.

    The endpoint and the credentials come from the AWS environment variables
    (`AWS_ENDPOINT_URL`, …), as boto3 reads them.
    """

    # Objects above this go in parts; S3 takes 5 GiB in one put at the most.
    MULTIPART_BYTES = 64 << 20

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config

        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._s3: Any = boto3.client(
            "s3", config=Config(retries={"mode": "standard", "max_attempts": 5})
        )

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, key: str, action: Callable[[], Any]) -> Any:
        """Run an S3 call, its errors turned into ours."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        uri = self.uri_of(key)
        try:
            return action()
        except NoCredentialsError:
            raise UserError(
                f"no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in ("404", "NoSuchKey", "NotFound"):
                raise NotThere(f"{uri} does not exist") from None
            if code == "NoSuchBucket":
                raise UserError(f"the bucket {self.bucket} does not exist; create it") from None
            if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
                raise AlreadyThere(f"{uri} is written once and exists already") from None
            if status in (401, 403):
                raise UserError(f"{uri}: access denied ({code}); check the credentials") from None
            raise RetryableError(f"{uri}: the S3 server answered {code or status}") from error
        except BotoCoreError as error:
            raise RetryableError(f"{uri}: {error}") from error

    def put_file(self, key: str, path: Path, *, once: bool = False) -> FileRef:
        """See `Store.put_file`."""
        digest, size = sha256_file(path), path.stat().st_size
        condition = {"IfNoneMatch": "*"} if once else {}
        where = {"Bucket": self.bucket, "Key": self._name(key)}

        def whole() -> None:
            with path.open("rb") as body:
                self._s3.put_object(**where, Body=body, Metadata={"sha256": digest}, **condition)

        if size <= self.MULTIPART_BYTES:
            self._call(key, whole)
        else:
            self._call(key, lambda: self._put_parts(path, where, digest, condition))
        return FileRef(name=Path(key).name, uri=self.uri_of(key), sha256=digest, bytes=size)

    def _put_parts(
        self, path: Path, where: dict[str, str], digest: str, condition: dict[str, str]
    ) -> None:
        upload = self._s3.create_multipart_upload(**where, Metadata={"sha256": digest})["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            with path.open("rb") as handle:
                while block := handle.read(self.MULTIPART_BYTES):
                    number = len(parts) + 1
                    answer = self._s3.upload_part(
                        **where, UploadId=upload, PartNumber=number, Body=block
                    )
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._s3.complete_multipart_upload(
                **where, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            self._s3.abort_multipart_upload(**where, UploadId=upload)
            raise

    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """See `Store.get_file`."""
        destination.parent.mkdir(parents=True, exist_ok=True)

        def fetch(staged: Path) -> None:
            answer = self._s3.get_object(Bucket=self.bucket, Key=self._name(key))
            expected.append(answer["Metadata"].get("sha256", "unknown (no sha256 metadata)"))
            with staged.open("wb") as handle:
                for block in answer["Body"].iter_chunks(_BLOCK):
                    handle.write(block)

        expected: list[str] = []
        staged = _stage_beside(destination, lambda path: self._call(key, lambda: fetch(path)))
        digest = sha256_file(staged)
        wanted = sha256 or expected[-1]
        if digest != wanted:
            staged.unlink()
            _check(self.uri_of(key), digest, wanted)
        staged.replace(destination)
        return FileRef(
            name=Path(key).name,
            uri=self.uri_of(key),
            sha256=digest,
            bytes=destination.stat().st_size,
        )

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            self._call(key, lambda: self._s3.head_object(Bucket=self.bucket, Key=self._name(key)))
        except NotThere:
            return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """See `Store.keys`."""
        below = self._name(prefix.rstrip("/") + "/") if prefix else self._name("")
        pages = self._s3.get_paginator("list_objects_v2")
        answer = self._call(prefix, lambda: list(pages.paginate(Bucket=self.bucket, Prefix=below)))
        cut = len(self.prefix) + 1 if self.prefix else 0
        for page in answer:
            for entry in page.get("Contents", []):
                yield str(entry["Key"])[cut:]

    def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        keys = [{"Key": self._name(key)} for key in self.keys(prefix)]
        # S3 deletes a thousand objects a call at the most.
        for start in range(0, len(keys), 1000):
            self._delete(prefix, keys[start : start + 1000])

    def _delete(self, prefix: str, names: list[dict[str, str]]) -> None:
        request = {"Objects": names, "Quiet": True}
        self._call(prefix, lambda: self._s3.delete_objects(Bucket=self.bucket, Delete=request))


def _stage_beside(target: Path, fill: Callable[[Path], object]) -> Path:
    """Fill a temporary file in the target's directory; nothing is left when that fails."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    staged = Path(name)
    try:
        fill(staged)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    staged.chmod(0o644)
    return staged


def _hashes(sidecar: Path) -> list[str]:
    return sidecar.read_text().split() if sidecar.exists() else []


def _write_whole(path: Path, text: str) -> None:
    _stage_beside(path, lambda staged: staged.write_text(text)).replace(path)


def open_store(uri: str) -> Store:
    """Open a store by its URI.

    Args:
        uri: `file:///absolute/dir` or `s3://bucket/prefix`.

    Raises:
        UserError: any other form.
    """
    parsed = urlparse(uri)
    if parsed.scheme == "file" and parsed.path.startswith("/") and not parsed.netloc:
        return FileStore(Path(unquote(parsed.path)))
    if parsed.scheme == "s3" and parsed.netloc:
        return S3Store(parsed.netloc, parsed.path)
    raise UserError(f"{uri!r} is not a store; use file:///absolute/directory or s3://bucket/prefix")
