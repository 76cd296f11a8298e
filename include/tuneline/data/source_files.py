"""Which files a dataset's address names: paths, folders, globs, `s3://`, `hf://datasets/…`.

Files come in the order of their names, each once, each with the name that its rows are told by.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from tuneline.errors import UserError

JSONL_ENDINGS = (".jsonl", ".ndjson")
CSV_ENDINGS = (".csv",)
PARQUET_ENDINGS = (".parquet",)
ENDINGS = (*JSONL_ENDINGS, *CSV_ENDINGS, *PARQUET_ENDINGS)
PACKED_ENDINGS = (".gz", ".gzip", ".zst", ".zstd")
KINDS = "a path, a folder, a glob, a file://, s3:// or hf://datasets/… address"
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset.

    Attributes:
        name: how rows and errors name it: its address, as the configuration writes it.
        address: the entry of the configuration that it comes from.
        origin: its full address, a hub's revision pinned to its commit.
        local: where it lies, None for one on a server.
        download: brings it to a given path; None for one that lies here.
    """

    name: str
    address: str
    origin: str
    local: Path | None = None
    download: Callable[[Path], None] | None = field(default=None, repr=False)

    def fetch(self, scratch: Path) -> Path:
        """Bring the file to this machine; one that lies here stays where it is.

        Raises:
            UserError: the server refuses it.
            RetryableError: the server failed.
        """
        if self.download is None:
            assert self.local is not None
            return self.local
        target = scratch / self.name.rpartition("/")[2]
        scratch.mkdir(parents=True, exist_ok=True)
        self.download(target)
        return target


def ending_of(name: str) -> str:
    """The ending that tells a file's form, a compression's passed over, in lower case."""
    stem, ending = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if ending in PACKED_ENDINGS else ending


def find_files(addresses: Iterable[str]) -> list[SourceFile]:
    """The files that addresses name, each file once.

    Raises:
        UserError: an address is malformed, or names nothing that can hold a dataset.
        RetryableError: a server failed.
    """
    found: dict[str, SourceFile] = {}
    for address in addresses:
        for file in _find(address):
            found.setdefault(file.origin, file)
    if not found:
        raise UserError(f"no dataset was named; give {KINDS}")
    return list(found.values())


def find_here(addresses: Iterable[str]) -> list[SourceFile]:
    """Like `find_files`, but asks no server: addresses on one are checked for their form."""
    return [file for address in addresses for file in _find(address, ask_servers=False)]


def _find(address: str, *, ask_servers: bool = True) -> list[SourceFile]:
    if not address.strip():
        raise UserError(f"no dataset was named; give {KINDS}")
    if address.startswith("s3://"):
        from tuneline.data.source_bucket import find_in_bucket, split_address

        split_address(address)
        return find_in_bucket(address) if ask_servers else []
    if address.startswith("hf://"):
        from tuneline.data.source_hub import find_on_hub, parse_address

        parse_address(address)
        return find_on_hub(address) if ask_servers else []
    if address.startswith("file://"):
        path = unquote(address.removeprefix("file://").removeprefix("localhost"))
        return _find_local(address, path, as_uri=True)
    if "://" in address:
        raise UserError(f"{address}: unknown kind of address; give {KINDS}")
    return _find_local(address, os.path.expanduser(address), as_uri=False)


def _find_local(address: str, path: str, *, as_uri: bool) -> list[SourceFile]:
    whole = Path(path)
    if "\0" in path:
        raise UserError(f"{address!r} is no path; give {KINDS}")
    if whole.is_dir():
        paths = _below(whole, address)
        if not paths:
            raise UserError(f"{address} is a folder without JSONL, CSV or Parquet files")
    elif whole.exists() or not _WILDCARD.search(path):
        if not whole.is_file():
            raise UserError(f"{address} does not exist; check the path of the dataset")
        return [SourceFile(address, address, whole.absolute().as_uri(), whole)]
    else:
        matches = map(Path, glob.glob(path, recursive=True))
        paths = sorted(p for p in matches if p.is_file() and ending_of(p.name) in ENDINGS)
        if not paths:
            raise UserError(f"{address} matches no JSONL, CSV or Parquet file; check the pattern")
    return [SourceFile(_shown(p, as_uri=as_uri), address, p.absolute().as_uri(), p) for p in paths]


def _below(folder: Path, address: str) -> list[Path]:
    """Every data file in a folder, hidden ones passed over."""

    def stop(error: OSError) -> None:
        raise UserError(f"{address}: {error.filename} can't be read: {error.strerror}")

    found = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if is_data(name)]
    return sorted(found)


def is_data(name: str) -> bool:
    """Whether a file found in a folder belongs to the dataset: by its ending, not hidden."""
    return not name.startswith(".") and ending_of(name) in ENDINGS


def _shown(path: Path, *, as_uri: bool) -> str:
    if as_uri:
        return path.absolute().as_uri()
    # A name that is no UTF-8 must not stop the tables that hold it.
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def choose(names: Sequence[str], wanted: str) -> list[str]:
    """Of the files on a server those that a path names: itself, all below it, or a glob's.

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
    """The folder above a pattern's first wildcard, empty for the root."""
    match = _WILDCARD.search(pattern)
    return pattern[: match.start()].rpartition("/")[0] if match else pattern


def has_wildcard(text: str) -> bool:
    """Whether a path is a glob."""
    return _WILDCARD.search(text) is not None


def _glob_pattern(text: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", text)
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
        raise UserError(f"{text!r} is no pattern for files; check its brackets") from None
