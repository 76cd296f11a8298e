"""Write files that appear whole and with the expected hash, or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tuneline.evidence import FileRef
from tuneline.store.base import CorruptObject

# Size of one read, bytes.
BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stage_beside(target: Path, fill: Callable[[Path], object]) -> Path:
    """Fill a temporary file in the target's directory; delete it if that fails."""
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


def settle(staged: Path, destination: Path, uri: str, expected: Sequence[str]) -> FileRef:
    """Move a copied object to its destination if its hash is one of those expected.

    Raises:
        CorruptObject: if it is not; the copy is deleted.
    """
    digest = sha256_file(staged)
    try:
        require_hash(digest, expected, uri)
    except CorruptObject:
        staged.unlink()
        raise
    staged.replace(destination)
    return FileRef(
        name=uri.rsplit("/", 1)[-1], uri=uri, sha256=digest, bytes=destination.stat().st_size
    )


def require_hash(digest: str, expected: Sequence[str], uri: str) -> None:
    """Refuse a hash that is not one of those expected.

    Raises:
        CorruptObject: if it is another one.
    """
    if digest not in expected:
        wanted = " or ".join(dict.fromkeys(expected)) or "unknown (no hash file)"
        raise CorruptObject(
            f"{uri} is corrupt: its SHA-256 is {digest}, expected {wanted}; "
            "restore it from a backup or run the step again that wrote it"
        )
