"""What every store can do, and how it fails."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef


class CorruptObject(TunelineError):
    """The bytes of an object are not those that were written."""


class AlreadyThere(TunelineError):
    """A write-once object exists."""


class NotThere(UserError):
    """The object does not exist."""


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
