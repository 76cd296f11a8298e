"""A store in a directory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.evidence import FileRef
from tuneline.store.base import AlreadyThere, Changed, NotThere, Store, Tagged
from tuneline.store.whole_files import require_hash, settle, sha256_file, stage_beside


class FileStore(Store):
    """A store in a directory (`file:///dir`).

    The hash of `name` is in `.name.sha256` beside it. While an object is replaced, that file
    holds the old and the new hash, so an object still verifies after a crash between the two
    renames.
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
        """Exclude writers of other processes between the two renames."""
        with (self.root / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_name(f".{path.name}.sha256")

    def put_file(self, key: str, path: Path, *, once: bool = False, link: bool = False) -> FileRef:
        """See `Store.put_file`."""
        place = _link_or_copy if link else shutil.copyfile
        return self._put(key, lambda staged: place(path, staged), self._refusal(key, once))

    def put_bytes(self, key: str, data: bytes, *, once: bool = False) -> FileRef:
        """See `Store.put_bytes`; a temporary directory would cost more than all else."""
        return self._put(key, lambda staged: staged.write_bytes(data), self._refusal(key, once))

    def replace(self, key: str, data: bytes, tag: str | None) -> None:
        """See `Store.replace`; the tag is the hash of the bytes."""
        target = self._path(key)

        def refuse_other() -> None:
            if (sha256_file(target) if target.is_file() else None) != tag:
                raise Changed(f"{self.uri_of(key)} has changed since it was read")

        self._put(key, lambda staged: staged.write_bytes(data), refuse_other)

    def _refusal(self, key: str, once: bool) -> Callable[[], None]:
        """Return what refuses a second writing of an object that is written once."""
        target = self._path(key)

        def refuse_second() -> None:
            if once and target.exists():
                raise AlreadyThere(f"{self.uri_of(key)} is written once and exists already")

        return refuse_second

    def _put(self, key: str, fill: Callable[[Path], object], refuse: Callable[[], None]) -> FileRef:
        """Write an object unless `refuse` raises, which is asked again under the lock."""
        target = self._path(key)
        sidecar = self._sidecar(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            refuse()
            staged = stage_beside(target, fill)
            digest = sha256_file(staged)
            with self._lock():
                try:
                    refuse()
                except TunelineError:
                    staged.unlink()
                    raise
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
        # A writer may replace the object during the copy, so a hash that was valid before or
        # after it is accepted.
        known = _hashes(sidecar)
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            staged = stage_beside(destination, lambda staged: shutil.copyfile(source, staged))
        except OSError as error:
            raise RetryableError(
                f"cannot read {self.uri_of(key)}: {error.strerror or error}"
            ) from error
        expected = [sha256] if sha256 else [*known, *_hashes(sidecar)]
        return settle(staged, destination, self.uri_of(key), expected)

    def get_bytes(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `Store.get_bytes`; a temporary directory would cost more than all else."""
        source = self._path(key)
        sidecar = self._sidecar(source)
        if not source.is_file():
            raise NotThere(f"{self.uri_of(key)} does not exist")
        known = _hashes(sidecar)
        try:
            data = source.read_bytes()
        except OSError as error:
            raise RetryableError(
                f"cannot read {self.uri_of(key)}: {error.strerror or error}"
            ) from error
        expected = [sha256] if sha256 else [*known, *_hashes(sidecar)]
        require_hash(hashlib.sha256(data).hexdigest(), expected, self.uri_of(key))
        return data

    def read_tagged(self, key: str) -> Tagged:
        """See `Store.read_tagged`."""
        data = self.get_bytes(key)
        return Tagged(data, hashlib.sha256(data).hexdigest())

    def rehash(self, key: str) -> FileRef:
        """See `Store.rehash`."""
        path = self._path(key)
        if not path.is_file():
            raise NotThere(f"{self.uri_of(key)} does not exist")
        known = _hashes(self._sidecar(path))
        try:
            digest = sha256_file(path)
        except OSError as error:
            raise RetryableError(
                f"cannot read {self.uri_of(key)}: {error.strerror or error}"
            ) from error
        require_hash(digest, [*known, *_hashes(self._sidecar(path))], self.uri_of(key))
        return FileRef(
            name=path.name, uri=self.uri_of(key), sha256=digest, bytes=path.stat().st_size
        )

    def find(self, key: str) -> FileRef | None:
        """See `Store.find`."""
        path = self._path(key)
        hashes = _hashes(self._sidecar(path))
        if not path.is_file() or not hashes:
            return None
        size = path.stat().st_size
        return FileRef(name=path.name, uri=self.uri_of(key), sha256=hashes[-1], bytes=size)

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


def _link_or_copy(path: Path, staged: Path) -> None:
    staged.unlink()
    try:
        os.link(path, staged)
    except OSError:
        # On another disk, or on one without links.
        shutil.copyfile(path, staged)


def _hashes(sidecar: Path) -> list[str]:
    return sidecar.read_text().split() if sidecar.exists() else []


def _write_whole(path: Path, text: str) -> None:
    stage_beside(path, lambda staged: staged.write_text(text)).replace(path)
