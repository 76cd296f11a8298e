"""A store in an S3 bucket."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tuneline.errors import RetryableError, UserError
from tuneline.evidence import FileRef
from tuneline.files import BLOCK, sha256_file, stage_beside
from tuneline.store.base import (
    AlreadyThere,
    Changed,
    Entry,
    LockMode,
    NotThere,
    Store,
    Tagged,
    require_hash,
    require_key,
)


def sealed(digest: str) -> dict[str, Any]:
    """Return what a write says of its bytes: the server refuses others, and keeps the hash."""
    return {"Metadata": {"sha256": digest}, "ChecksumSHA256": _base64(bytes.fromhex(digest))}


def put_parts(
    s3: Any,
    path: Path,
    part_bytes: int,
    where: Mapping[str, str],
    digest: str,
    *,
    condition: Mapping[str, str],
) -> None:
    """Upload a file in parts; the object appears with the last call, or not at all."""
    upload = s3.create_multipart_upload(
        **where, Metadata={"sha256": digest}, ChecksumAlgorithm="SHA256"
    )["UploadId"]
    named = {**where, "UploadId": upload}
    try:
        parts = _send(s3, path, part_bytes, named)
        s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts}, **condition)
    except BaseException as error:
        # An error of its own would hide the first one.
        with suppress(Exception):
            s3.abort_multipart_upload(**named)
        if not _was_completed(s3, error, where, digest):
            raise


def _send(s3: Any, path: Path, part_bytes: int, named: Mapping[str, str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    with path.open("rb") as handle:
        while block := handle.read(part_bytes):
            number = len(parts) + 1
            answer = s3.upload_part(
                **named,
                PartNumber=number,
                Body=block,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_base64(hashlib.sha256(block).digest()),
            )
            # A server that kept the checksum compares it again with what it is told at the end,
            # and refuses to be told nothing.
            kept = {name: value for name, value in answer.items() if name.startswith("Checksum")}
            kept.pop("ChecksumType", None)
            parts.append({"PartNumber": number, "ETag": answer["ETag"], **kept})
    return parts


def _was_completed(s3: Any, error: BaseException, where: Mapping[str, str], digest: str) -> bool:
    """Return True if the call that failed repeated one that had worked, whose answer was lost."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError) or error.response["Error"]["Code"] != "NoSuchUpload":
        return False
    try:
        head = s3.head_object(**where)
    except ClientError:
        return False
    return bool(head["Metadata"].get("sha256") == digest)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


T = TypeVar("T")

# Makes a client by a connection, None without one; Airflow's processes set it.
by_connection: Callable[[Any], Any] | None = None

_NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed")
# Between the tries of a read that broke on its way, in seconds.
_WAITS_S = (0.2, 0.8, 2.0)
# Stands for the hash of an object that another program wrote.
_UNKNOWN = "unknown (no sha256 metadata)"


def call_s3(subject: str, action: Callable[[], T]) -> T:
    """Run an S3 call and translate its errors.
    Raises:
        NotThere: if there is no such object.
        AlreadyThere: if a conditional write found one.
        UserError: if there is no such bucket, or the server refuses the call.
        RetryableError: if the server can't be reached or failed.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    try:
        return action()
    except (NoCredentialsError, PartialCredentialsError):
        raise UserError(
            f"{subject}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
            "AWS_ENDPOINT_URL for a server of your own), or in Airflow the connection aws_default "
            "of its amazon provider"
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in ("404", "NoSuchKey", "NotFound"):
            raise NotThere(f"{subject} does not exist") from None
        if code == "NoSuchBucket":
            bucket = error.response["Error"].get("BucketName", "that it names")
            raise UserError(f"{subject}: the bucket {bucket} does not exist; create it") from None
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
            raise AlreadyThere(f"{subject} is written once and exists already") from None
        if status in (401, 403):
            raise UserError(f"{subject}: access denied ({code}); check the credentials") from None
        raise RetryableError(f"{subject}: the S3 server answered {code or status}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise RetryableError(f"{subject}: S3 failed: {error}") from error


def s3_client(*, new_session: bool = False) -> Any:
    """Return a client with the endpoint and credentials of a connection, or as boto3 finds them.

    A new session costs half a second; the default one keeps the first credentials that it saw.
    """
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 5})
    session = boto3.session.Session() if new_session else boto3
    client = by_connection(config) if by_connection else None
    return client or session.client("s3", config=config)


class S3Store(Store):
    """A store in a bucket (`s3://bucket/prefix`), any S3-compatible server."""

    # Larger objects are sent in parts; S3 takes at most 5 GiB in one put.
    MULTIPART_BYTES = 64 << 20

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._s3 = s3_client()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._below(require_key(key))}

    def _below(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, key: str, action: Callable[[], T]) -> T:
        return call_s3(self.uri_of(key), action)

    def _read(self, key: str, action: Callable[[], T]) -> T:
        """Read an object; from its start again if the connection breaks on the way."""
        from botocore import exceptions as of

        broken = (of.IncompleteReadError, of.ReadTimeoutError, of.ResponseStreamingError)
        for wait in _WAITS_S:
            try:
                return self._call(key, action)
            except RetryableError as error:
                if not isinstance(error.__cause__, broken):
                    raise
                time.sleep(wait)
        return self._call(key, action)

    def put_file(self, key: str, path: Path, *, once: bool = False, link: bool = False) -> FileRef:
        """See `Store.put_file`."""
        digest, size = sha256_file(path), path.stat().st_size
        condition = {"IfNoneMatch": "*"} if once else {}
        where = self._at(key)

        def whole() -> None:
            with path.open("rb") as body:
                self._s3.put_object(**where, Body=body, **sealed(digest), **condition)

        if size <= self.MULTIPART_BYTES:
            self._call(key, whole)
        else:
            sent = partial(put_parts, self._s3, path, self.MULTIPART_BYTES, where, digest)
            self._call(key, partial(sent, condition=condition))
        return self.ref(key, digest, size)

    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """See `Store.get_file`."""
        staged, stored = self._download(require_key(key), destination)
        return self.settle(staged, destination, key, [sha256 or stored])

    def get_foreign(self, key: str, destination: Path) -> None:
        """Copy an object that another program wrote, so that no hash of it is known."""
        staged, _ = self._download(key, destination)
        staged.replace(destination)

    def _download(self, key: str, destination: Path) -> tuple[Path, str]:
        """Copy an object beside the destination; return the copy and its stored hash."""
        stored = ""

        def fetch(staged: Path) -> None:
            nonlocal stored
            answer = self._s3.get_object(Bucket=self.bucket, Key=self._below(key))
            stored = answer["Metadata"].get("sha256", _UNKNOWN)
            with staged.open("wb") as handle:
                for block in answer["Body"].iter_chunks(BLOCK):
                    handle.write(block)

        destination.parent.mkdir(parents=True, exist_ok=True)
        staged = stage_beside(destination, lambda path: self._read(key, lambda: fetch(path)))
        return staged, stored

    def rehash(self, key: str) -> FileRef:
        """See `Store.rehash`."""
        digest, size, stored = self._read(key, partial(self._hash_stream, key))
        require_hash(digest, [stored], self.uri_of(key))
        return self.ref(key, digest, size)

    def hash_foreign(self, key: str) -> str:
        """Return the SHA-256 of an object that another program wrote."""
        return self._read(key, partial(self._hash_stream, key))[0]

    def _hash_stream(self, key: str) -> tuple[str, int, str]:
        """Read an object; return its hash, its size in bytes, and its stored hash."""
        answer = self._s3.get_object(**self._at(key))
        digest, size = hashlib.sha256(), 0
        for block in answer["Body"].iter_chunks(BLOCK):
            digest.update(block)
            size += len(block)
        return digest.hexdigest(), size, answer["Metadata"].get("sha256", _UNKNOWN)

    def read_tagged(self, key: str) -> Tagged:
        """See `Store.read_tagged`; the tag is the server's."""

        def read() -> tuple[bytes, dict[str, Any]]:
            answer = self._s3.get_object(**self._at(key))
            return answer["Body"].read(), answer

        data, answer = self._read(key, read)
        stored = answer["Metadata"].get("sha256", _UNKNOWN)
        require_hash(hashlib.sha256(data).hexdigest(), [stored], self.uri_of(key))
        return Tagged(data, str(answer["ETag"]))

    def replace(self, key: str, data: bytes, tag: str | None) -> None:
        """See `Store.replace`."""
        digest = hashlib.sha256(data).hexdigest()
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        request = {**self._at(key), "Body": data, **sealed(digest), **condition}
        try:
            self._call(key, lambda: self._s3.put_object(**request))
        except (AlreadyThere, NotThere):
            # boto3 sends a write again whose answer was lost. The second one meets the first.
            written = self.find(key)
            if written is None or written.sha256 != digest:
                raise Changed(f"{self.uri_of(key)} has changed since it was read") from None

    def retain(self, key: str, days: int, mode: LockMode) -> bool:
        """See `Store.retain`."""
        if not self._locks:
            return False
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        lock = {"Mode": mode.upper(), "RetainUntilDate": until}
        where = self._at(key)
        self._call(key, lambda: self._s3.put_object_retention(**where, Retention=lock))
        return True

    @cached_property
    def _locks(self) -> bool:
        """True if the bucket has Object Lock."""
        from botocore.exceptions import ClientError

        def ask() -> bool:
            try:
                answer = self._s3.get_object_lock_configuration(Bucket=self.bucket)
            except ClientError as error:
                # Without Object Lock, or on a server that does not know it.
                if error.response["Error"]["Code"] in _NO_LOCK:
                    return False
                raise
            found = answer.get("ObjectLockConfiguration", {})
            return bool(found.get("ObjectLockEnabled") == "Enabled")

        return self._call("", ask)

    def tag(self, key: str) -> str:
        """Return the ETag of an object, which changes with its bytes; see `get_foreign`."""
        head = partial(self._s3.head_object, Bucket=self.bucket, Key=self._below(key))
        return "etag:" + str(self._call(key, head)["ETag"]).strip('"')

    def find(self, key: str) -> FileRef | None:
        """See `Store.find`."""
        where = self._at(key)
        try:
            answer = self._call(key, lambda: self._s3.head_object(**where))
        except NotThere:
            return None
        return self.ref(key, answer["Metadata"].get("sha256", _UNKNOWN), answer["ContentLength"])

    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Store.entries`."""
        prefix = prefix.rstrip("/")
        below = f"{self._below(require_key(prefix))}/" if prefix else self._below("")
        pages = iter(
            self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
        )
        cut = len(self.prefix) + 1 if self.prefix else 0
        while page := self._call(prefix, lambda: next(pages, None)):
            for found in page.get("Contents", []):
                yield Entry(str(found["Key"])[cut:], found["Size"], found["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`."""
        named = iter(keys)
        # S3 deletes at most a thousand objects in one call.
        while some := [{"Key": self._at(key)["Key"]} for key in islice(named, 1000)]:
            request = {"Objects": some, "Quiet": True}
            delete = partial(self._s3.delete_objects, Bucket=self.bucket, Delete=request)
            refused = self._call(some[0]["Key"], delete).get("Errors", [])
            if refused:
                why = refused[0].get("Message") or refused[0].get("Code")
                raise UserError(f"{refused[0]['Key']} can't be deleted from {self.bucket}: {why}")

    def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        self.delete(self.keys(require_key(prefix.rstrip("/"))))
