"""The interface of stores and their errors."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef
from tuneline.files import is_inner, sha256_file

LockMode = Literal["governance", "compliance"]


class CorruptObject(TunelineError):
    """The bytes of an object differ from those that were written."""


class AlreadyThere(TunelineError):
    """A write-once object exists."""


class Changed(TunelineError):
    """An object is not the one that a conditional write was to replace."""


class NotThere(UserError):
    """The object does not exist."""


@dataclass(frozen=True)
class Entry:
    """An object as a listing states it."""

    key: str
    bytes: int
    modified: datetime  # UTC; when it was last written


@dataclass(frozen=True)
class Tagged:
    """An object as it was read, for a conditional write that replaces it."""

    data: bytes
    tag: str  # by which the store knows these bytes


def require_key(key: str) -> str:
    """Return a key, which stays below the root of its store.

    Raises:
        UserError: if it is absolute, or has `..`, an empty part, a backslash or a NUL.
    """
    if not is_inner(key):
        raise UserError(f"{key!r} is not a key: use a relative path without '..' or empty parts")
    return key


class Store(ABC):
    """Objects by key (a relative POSIX path) under one root URI.

    Every method refuses a key that leads out of the root (`UserError`). What is written once as
    bytes or by `replace` outlasts a power cut; other objects do after `flush`.
    """

    uri: str

    def uri_of(self, key: str) -> str:
        """Return the full URI of a key."""
        return f"{self.uri}/{key}"

    def ref(self, key: str, sha256: str, size: int) -> FileRef:
        """Return the reference of an object of `size` bytes."""
        return FileRef(name=Path(key).name, uri=self.uri_of(key), sha256=sha256, bytes=size)

    def key_of(self, uri: str) -> str:
        """Return the key of a full URI of this store."""
        if not uri.startswith(self.uri + "/"):
            raise UserError(f"{uri} is not in the store {self.uri}")
        return uri[len(self.uri) + 1 :]

    @abstractmethod
    def put_file(self, key: str, path: Path, *, once: bool = False, link: bool = False) -> FileRef:
        """Write a file as one object.

        Args:
            once: whether an object that exists is kept.
            link: whether a directory may link the file instead of copying it, since nobody
                changes it any more.

        Raises:
            AlreadyThere: if `once` is set and the object exists.
            RetryableError: if the disk is full or the server failed.
        """

    @abstractmethod
    def get_file(self, key: str, destination: Path, *, sha256: str | None = None) -> FileRef:
        """Copy an object to a local file and check its hash.

        Args:
            destination: the local file; it appears whole or not at all.
            sha256: the expected hash; None takes the stored one.

        Raises:
            NotThere: if there is no such object.
            CorruptObject: if the hash differs.
        """

    @abstractmethod
    def rehash(self, key: str) -> FileRef:
        """Recompute the hash of an object where it lies, without a copy on this machine.

        Raises:
            NotThere: if there is no such object.
            CorruptObject: if it is not the hash that the object was written with.
            RetryableError: if the server failed.
        """

    @abstractmethod
    def read_tagged(self, key: str) -> Tagged:
        """Read a small object whole, with the tag by which `replace` knows it.

        Raises:
            NotThere: if there is no such object.
            CorruptObject: if its bytes are not those that were written.
        """

    @abstractmethod
    def replace(self, key: str, data: bytes, tag: str | None) -> None:
        """Write bytes as one object if it has not changed since it was read.

        Args:
            data: the new bytes.
            tag: the tag that `read_tagged` returned; None if there was no object.

        Raises:
            Changed: if another writer came first; nothing was written.
            RetryableError: if the disk is full or the server failed.
        """

    def flush(self) -> None:
        """Wait until everything that was written by this object outlasts a power cut.

        A server keeps what it has confirmed.

        Raises:
            RetryableError: if the disk failed.
        """
        return

    def retain(self, key: str, days: int, mode: LockMode) -> bool:
        """Lock an object against deletion, where the store can.

        Args:
            mode: `governance`, which those with a right of their own may lift, or `compliance`,
                which nobody may.

        Returns:
            False if this store locks nothing: a directory, or a bucket without Object Lock.

        Raises:
            UserError: if the credentials do not allow it.
            RetryableError: if the server failed.
        """
        return False

    @abstractmethod
    def find(self, key: str) -> FileRef | None:
        """Return an object's size and the hash it was written with, None without an object."""

    def exists(self, key: str) -> bool:
        """Return True if the object exists."""
        return self.find(key) is not None

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield all objects below a prefix that ends at a path boundary, in order.

        A listing of any length needs the memory of one page of it.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys of `entries`."""
        return (entry.key for entry in self.entries(prefix))

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in order; one that is not there is none to delete.

        Raises:
            UserError: if the server refuses to delete one.
        """

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Delete every object below a prefix."""

    def settle(self, staged: Path, destination: Path, key: str, expected: Sequence[str]) -> FileRef:
        """Move a copied object to its destination; delete the copy if its hash is unexpected."""
        digest = sha256_file(staged)
        try:
            require_hash(digest, expected, self.uri_of(key))
        except CorruptObject:
            staged.unlink()
            raise
        staged.replace(destination)
        return self.ref(key, digest, destination.stat().st_size)

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


def require_hash(digest: str, expected: Sequence[str], uri: str) -> None:
    """Raise CorruptObject if a hash is not one of those expected."""
    if digest not in expected:
        wanted = " or ".join(dict.fromkeys(expected)) or "unknown (no hash file)"
        raise CorruptObject(
            f"{uri} is corrupt: its SHA-256 is {digest}, expected {wanted}; "
            "restore it from a backup or run the step again that wrote it"
        )
