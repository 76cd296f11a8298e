"""The store: whole objects under a URI, the same on a directory and on S3.

A reader sees the old object or the new one. Every read recomputes the SHA-256, `once=True` refuses
to replace, and `replace` writes only over the bytes that the caller has read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuneline.errors import UserError
from tuneline.files import sha256_file
from tuneline.store.base import AlreadyThere, Changed, CorruptObject, Entry, NotThere, Store, Tagged
from tuneline.store.bucket import S3Store
from tuneline.store.directory import FileStore

__all__ = [
    "AT_WORK",
    "AlreadyThere",
    "Changed",
    "CorruptObject",
    "Entry",
    "FileStore",
    "NotThere",
    "S3Store",
    "Store",
    "Tagged",
    "at_work_in",
    "open_store",
    "sha256_file",
    "store_of",
]

# The store of the run at work, in which models are looked for before a package index is asked.
AT_WORK: ContextVar[Store | None] = ContextVar("AT_WORK", default=None)


@contextmanager
def at_work_in(store: Store) -> Iterator[None]:
    """Have `AT_WORK` name a store in this context."""
    token = AT_WORK.set(store)
    try:
        yield
    finally:
        AT_WORK.reset(token)


def open_store(uri: str) -> Store:
    """Open a store by its URI."""
    parsed = urlparse(uri)
    if parsed.scheme == "file" and parsed.path.startswith("/") and not parsed.netloc:
        return FileStore(Path(unquote(parsed.path)))
    if parsed.scheme == "s3" and parsed.netloc:
        return S3Store(parsed.netloc, parsed.path)
    raise UserError(f"{uri!r} is not a store; use file:///absolute/directory or s3://bucket/prefix")


def local_file(address: str, scratch: Path) -> Path:
    """Return the path of a file on this machine; a local one need not exist.

    `address` is a path, `file://` or `s3://`; a file of a bucket is fetched into `scratch`.
    """
    parsed = urlparse(address)
    if parsed.scheme == "s3":
        folder, _, name = address.rpartition("/")
        open_store(folder).get_file(name, scratch / name)
        return scratch / name
    return Path(unquote(parsed.path) if parsed.scheme == "file" else address)


def store_of(process: str) -> str:
    """Return the URI of the store that the environment of a process names."""
    store = os.environ.get("TUNELINE_STORE")
    if not store:
        raise UserError(
            f"TUNELINE_STORE is not set for {process}; it names the store (file:// or s3://)"
        )
    return store.rstrip("/")
