"""Find the files that addresses name: paths, folders, globs, `s3://`, `hf://datasets/…`.

Files come in the order of their names, each once, with the name that rows and errors give.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from tuneline.data.sample import SAMPLES
from tuneline.data.sources.source_file import ENDINGS, SourceFile, ending_of, has_wildcard, is_data
from tuneline.errors import UserError

KINDS = (
    "a path, a folder, a glob, a file://, s3:// or hf://datasets/… address, or "
    f"{' or '.join(SAMPLES)}"
)


def find_files(addresses: Iterable[str]) -> list[SourceFile]:
    """Find the files that addresses name, each file once.

    Raises:
        UserError: if an address is malformed, or names nothing that can hold a dataset.
        RetryableError: if a server failed.
    """
    found: dict[str, SourceFile] = {}
    for address in addresses:
        for file in _find(address):
            found.setdefault(file.origin, file)
    if not found:
        raise UserError(f"no dataset was named; give {KINDS}")
    return list(found.values())


def find_here(addresses: Iterable[str]) -> list[SourceFile]:
    """Find local files; addresses on a server are only checked for their form."""
    return [file for address in addresses for file in _find(address, ask_servers=False)]


def _find(address: str, *, ask_servers: bool = True) -> list[SourceFile]:
    if not address.strip():
        raise UserError(f"no dataset was named; give {KINDS}")
    if address.startswith("s3://"):
        from tuneline.data.sources.bucket import find_in_bucket, split_address

        split_address(address)
        return find_in_bucket(address) if ask_servers else []
    if address.startswith("hf://"):
        from tuneline.data.sources.hub import find_on_hub, parse_address

        parse_address(address)
        return find_on_hub(address) if ask_servers else []
    if address.startswith("file://"):
        path = unquote(address.removeprefix("file://").removeprefix("localhost"))
        return _find_local(address, path, as_uri=True)
    if address in SAMPLES:
        return [SourceFile(address, address, address, SAMPLES[address])]
    if "://" in address:
        raise UserError(f"{address}: unknown kind of address; give {KINDS}")
    return _find_local(address, os.path.expanduser(address), as_uri=False)


def _find_local(address: str, path: str, *, as_uri: bool) -> list[SourceFile]:
    whole = Path(path)
    if "\0" in path:
        raise UserError(f"{address!r} is not a path; give {KINDS}")
    if whole.is_dir():
        paths = _below(whole, address)
        if not paths:
            raise UserError(f"{address} is a folder without JSONL, CSV or Parquet files")
    elif whole.exists() or not has_wildcard(path):
        if not whole.is_file():
            raise UserError(f"{address} does not exist; check the path of the dataset")
        return [SourceFile(address, address, whole.absolute().as_uri(), whole)]
    else:
        matches = map(Path, glob.glob(path, recursive=True))
        paths = sorted(p for p in matches if p.is_file() and ending_of(p.name) in ENDINGS)
        if not paths:
            raise UserError(f"{address} matches no JSONL, CSV or Parquet file; check the pattern")
    return [SourceFile(_name(p, as_uri=as_uri), address, p.absolute().as_uri(), p) for p in paths]


def _below(folder: Path, address: str) -> list[Path]:
    """Find every data file in a folder, without hidden ones."""

    def stop(error: OSError) -> None:
        raise UserError(f"{address}: {error.filename} can't be read: {error.strerror}")

    found = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if is_data(name)]
    return sorted(found)


def _name(path: Path, *, as_uri: bool) -> str:
    if as_uri:
        return path.absolute().as_uri()
    # A name that is not UTF-8 must not stop the tables that hold it.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
