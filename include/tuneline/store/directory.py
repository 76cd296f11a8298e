"""A store in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tuneline.errors import RetryableError, TunelineError
from tuneline.evidence import FileRef
from tuneline.files import private_folder, sha256_file, stage_beside, sync
from tuneline.store.base import (
    AlreadyThere,
    Changed,
    Entry,
    NotThere,
    Store,
    Tagged,
    require_hash,
    require_key,
)

T = TypeVar("T")


class FileStore(Store):
    """A store in a directory (`file:///dir`), which its owner alone may read.

    The hash of `name` is in `.name.sha256` beside it. While an object is replaced, that file
    holds the old and the new hash, so an object still verifies after a crash between the two
    renames.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()
        # Objects that a power cut may still take.
        self._unsynced: set[Path] = set()

    def _path(self, key: str) -> Path:
        return self.root / require_key(key)

    @contextlib.contextmanager
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
        refuse = self._refusal(key, once)
        return self._put(key, lambda staged: staged.write_bytes(data), refuse, lasting=once)

    def replace(self, key: str, data: bytes, tag: str | None) -> None:
        """See `Store.replace`; the tag is the hash of the bytes."""
        target = self._path(key)

        def refuse_other() -> None:
            if (sha256_file(target) if target.is_file() else None) != tag:
                raise Changed(f"{self.uri_of(key)} has changed since it was read")

        self._put(key, lambda staged: staged.write_bytes(data), refuse_other, lasting=True)

    def flush(self) -> None:
        """See `Store.flush`."""
        written, self._unsynced = self._unsynced, set()
        with _disk_errors(f"write {self.uri}"):
            for target in written:
                # What was deleted since needs no disk.
                with contextlib.suppress(FileNotFoundError):
                    sync(target)
                    sync(self._sidecar(target))
            self._sync_names(written)

    def _sync_names(self, targets: Iterable[Path]) -> None:
        """Wait until the disk holds the names of objects and of the folders above them."""
        above = {folder for target in targets for folder in target.parents}
        for folder in above:
            if folder.is_relative_to(self.root) and folder.is_dir():
                sync(folder)

    def _refusal(self, key: str, once: bool) -> Callable[[], None]:
        """Return what refuses a second writing of an object that is written once."""
        target = self._path(key)

        def refuse_second() -> None:
            if once and target.exists():
                raise AlreadyThere(f"{self.uri_of(key)} is written once and exists already")

        return refuse_second

    def _put(
        self,
        key: str,
        fill: Callable[[Path], object],
        refuse: Callable[[], None],
        *,
        lasting: bool = False,
    ) -> FileRef:
        """Write an object unless `refuse` raises, which is asked again under the lock."""
        target = self._path(key)
        sidecar = self._sidecar(target)
        with _disk_errors(f"write {self.uri_of(key)}"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            private_folder(target.parent)
            refuse()
            staged = stage_beside(target, fill, lasting=lasting)
            digest = sha256_file(staged)
            with self._lock():
                try:
                    refuse()
                except TunelineError:
                    staged.unlink()
                    raise
                _note(sidecar, [*_hashes(sidecar), digest], lasting=lasting)
                staged.replace(target)
                _note(sidecar, [digest], lasting=lasting)
            if lasting:
                self._sync_names([target])
            else:
                self._unsynced.add(target)
        return self.ref(key, digest, target.stat().st_size)

    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """See `Store.get_file`."""

        def copied(source: Path) -> Path:
            destination.parent.mkdir(parents=True, exist_ok=True)
            return stage_beside(destination, lambda staged: shutil.copyfile(source, staged))

        staged, known = self._read(key, copied)
        return self.settle(staged, destination, key, [sha256] if sha256 else known)

    def get_bytes(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `Store.get_bytes`; a temporary directory would cost more than all else."""
        data, known = self._read(key, Path.read_bytes)
        digest = hashlib.sha256(data).hexdigest()
        require_hash(digest, [sha256] if sha256 else known, self.uri_of(key))
        return data

    def read_tagged(self, key: str) -> Tagged:
        """See `Store.read_tagged`."""
        data = self.get_bytes(key)
        return Tagged(data, hashlib.sha256(data).hexdigest())

    def rehash(self, key: str) -> FileRef:
        """See `Store.rehash`."""
        digest, known = self._read(key, sha256_file)
        require_hash(digest, known, self.uri_of(key))
        return self.ref(key, digest, self._path(key).stat().st_size)

    def _read(self, key: str, read: Callable[[Path], T]) -> tuple[T, list[str]]:
        """Return what a function makes of an object, and the hashes that the object may have.

        A writer may replace it meanwhile, so one that was valid before or after is accepted.
        """
        source = self._path(key)
        if not source.is_file():
            raise NotThere(f"{self.uri_of(key)} does not exist")
        known = _hashes(self._sidecar(source))
        with _disk_errors(f"read {self.uri_of(key)}"):
            return read(source), [*known, *_hashes(self._sidecar(source))]

    def find(self, key: str) -> FileRef | None:
        """See `Store.find`."""
        path = self._path(key)
        hashes = _hashes(self._sidecar(path))
        if not path.is_file() or not hashes:
            return None
        return self.ref(key, hashes[-1], path.stat().st_size)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._path(key).is_file()

    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Store.entries`."""
        yield from self._below(str(self._path(prefix.rstrip("/")) if prefix else self.root))

    def _below(self, folder: str) -> Iterator[Entry]:
        # What another process deletes meanwhile is not there.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for found in sorted(os.scandir(folder), key=lambda found: found.name):
                if found.is_dir(follow_symlinks=False):
                    yield from self._below(found.path)
                elif not found.name.startswith(".") and found.is_file():
                    stat = found.stat()
                    key = Path(found.path).relative_to(self.root).as_posix()
                    written = datetime.fromtimestamp(stat.st_mtime, UTC)
                    yield Entry(key, stat.st_size, written)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`; a folder goes with its last object."""
        for path in map(self._path, keys):
            with _disk_errors(f"delete {path}"):
                path.unlink(missing_ok=True)
                self._sidecar(path).unlink(missing_ok=True)
            for folder in path.parents:
                try:
                    if folder == self.root:
                        break
                    folder.rmdir()
                except OSError:
                    break

    def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        shutil.rmtree(self._path(prefix.rstrip("/")), ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RetryableError(f"cannot {what}: {error.strerror or error}") from error


def _link_or_copy(path: Path, staged: Path) -> None:
    staged.unlink()
    try:
        os.link(path, staged)
    except OSError:
        # On another disk, or on one without links.
        shutil.copyfile(path, staged)


def _hashes(sidecar: Path) -> list[str]:
    return sidecar.read_text().split() if sidecar.exists() else []


def _note(sidecar: Path, hashes: Sequence[str], *, lasting: bool) -> None:
    text = "".join(f"{known}\n" for known in hashes)
    stage_beside(sidecar, lambda staged: staged.write_text(text), lasting=lasting).replace(sidecar)
