"""Write the files of a sample so that each appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuneline.errors import UserError


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files, with the folders that they lie in.

    Args:
        files: content by path.

    Raises:
        UserError: if one can't be written.
    """
    try:
        for path, content in files.items():
            _write(path, content)
    except OSError as error:
        raise UserError(
            f"the sample can't be written to {' and '.join(map(str, files))}: {error.strerror}; "
            "name files in a folder that you may write to and that has space"
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
