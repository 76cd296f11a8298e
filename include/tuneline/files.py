"""Whole files: their hashes, how they reach the disk, and names that stay below their folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tuneline.errors import UserError

# Size of one read, bytes.
BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# What writing a file changes: its inode, its size in bytes, the time of its last change in ns.
FileState: TypeAlias = tuple[int, int, int]


def file_state(path: Path) -> FileState:
    """Return the state of a file, noted before it is hashed to see later if it was written."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def stage_beside(target: Path, fill: Callable[[Path], object], *, lasting: bool = False) -> Path:
    """Fill a temporary file in the target's directory, for its owner alone; delete it on failure.

    Args:
        lasting: whether the disk has to hold it when this returns.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    staged = Path(name)
    try:
        fill(staged)
        if lasting:
            sync(staged)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def sync(path: Path) -> None:
    """Wait until the disk holds the bytes of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace a file in one step; its owner alone may read it.

    Args:
        lasting: whether the disk has to hold it when this returns.
    """
    stage_beside(path, lambda staged: staged.write_bytes(data), lasting=lasting).replace(path)
    if lasting:
        sync(path.parent)


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing, for their owner alone; return it."""
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def is_inner(name: str) -> bool:
    """Return True if a name leads below a folder: no root, `..`, empty part, backslash or NUL."""
    return not {"", ".", ".."} & set(name.split("/")) and not {"\\", "\0"} & set(name)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name below a folder.

    Raises:
        UserError: if it leads out of the folder, also by a link.
    """
    target = folder / name
    if not is_inner(name) or not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} leads out of {folder}; nothing was read or written")
    return target
