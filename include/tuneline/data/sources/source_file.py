"""One file of a dataset, and the choice of files on a server by a path or glob."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuneline.errors import UserError
from tuneline.store import sha256_file

JSONL_ENDINGS = (".jsonl", ".ndjson")
CSV_ENDINGS = (".csv", ".tsv")
PARQUET_ENDINGS = (".parquet",)
ENDINGS = (*JSONL_ENDINGS, *CSV_ENDINGS, *PARQUET_ENDINGS)
PACKED_ENDINGS = (".gz", ".gzip", ".zst", ".zstd")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset.

    Attributes:
        name: its name in rows and errors: the address as the configuration writes it.
        address: the entry of the configuration that names it.
        origin: its full address, a hub's revision pinned to its commit.
        local: its path on this machine, None for a file on a server.
        download: a function that brings it to a given path; None for a local file.
        tag: a function that asks the server for a tag of its bytes; None for a local file, and
            where `origin` names a commit.
    """

    name: str
    address: str
    origin: str
    local: Path | None = None
    download: Callable[[Path], None] | None = field(default=None, repr=False)
    tag: Callable[[], str] | None = field(default=None, repr=False)

    def fingerprint(self) -> str:
        """Return a text that changes when the file's bytes do, without fetching them.

        Raises:
            UserError: if the file is gone, or the server refuses it.
            RetryableError: if the server failed.
        """
        if self.local is not None:
            return f"sha256:{sha256_file(self.local)}"
        return f"etag:{self.tag()}" if self.tag else "commit"

    def fetch(self, scratch: Path) -> Path:
        """Bring the file to this machine; a local file stays where it is.

        Raises:
            UserError: if the server refuses it.
            RetryableError: if the server failed.
        """
        if self.download is None:
            assert self.local is not None
            return self.local
        target = scratch / self.name.rpartition("/")[2]
        scratch.mkdir(parents=True, exist_ok=True)
        self.download(target)
        return target


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, without that of a compression."""
    stem, ending = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if ending in PACKED_ENDINGS else ending


def is_csv(name: str) -> bool:
    """Return True if a file is a CSV or TSV by its ending."""
    return ending_of(name) in CSV_ENDINGS


def is_data(name: str) -> bool:
    """Return True if a file of a folder belongs to the dataset by its ending and isn't hidden."""
    return not name.startswith(".") and ending_of(name) in ENDINGS


def choose(names: Sequence[str], wanted: str) -> list[str]:
    """Choose the files on a server that a path names: itself, all below it, or a glob's.

    Args:
        names: relative POSIX paths.
        wanted: a file, a folder, a glob (`*` stays within a folder, `**` does not), or empty
            for all.
    """
    if wanted in names:
        return [wanted]
    if _WILDCARD.search(wanted):
        pattern = _glob_pattern(wanted)
        chosen = [name for name in names if pattern.fullmatch(name)]
    else:
        folder = wanted.rstrip("/") + "/" if wanted.strip("/") else ""
        chosen = [name for name in names if name.startswith(folder)]
    return sorted(
        name
        for name in chosen
        if is_data(name.rpartition("/")[2])
        and not any(part.startswith(".") for part in name.split("/"))
    )


def fixed_folder(pattern: str) -> str:
    """Return the folder above a pattern's first wildcard, empty for the root."""
    match = _WILDCARD.search(pattern)
    return pattern[: match.start()].rpartition("/")[0] if match else pattern


def has_wildcard(text: str) -> bool:
    """Return True if a path is a glob."""
    return _WILDCARD.search(text) is not None


def _glob_pattern(text: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]{0,255}\])", text)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for piece in pieces:
        if piece in known:
            parts.append(known[piece])
        elif piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
            inner = piece[1:-1].replace("\\", "\\\\")
            parts.append(f"[{'^' + inner[1:] if inner.startswith('!') else inner}]")
        else:
            parts.append(re.escape(piece))
    try:
        return re.compile("".join(parts), re.S)
    except re.error:
        raise UserError(f"{text!r} is not a pattern for files; check its brackets") from None
