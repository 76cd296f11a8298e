"""Find the files that addresses name: paths, folders, globs, buckets, datasets."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict

from tuneline.artifacts.data import Snapshot
from tuneline.data.sample import SAMPLES
from tuneline.data.sources.object_stores import EXTRAS, ObjectStore
from tuneline.errors import UserError
from tuneline.models.origins import call_hub
from tuneline.store import NotThere, S3Store, sha256_file

JSONL_ENDINGS = (".jsonl", ".ndjson")
CSV_ENDINGS = (".csv", ".tsv")
PARQUET_ENDINGS = (".parquet",)
ENDINGS = (*JSONL_ENDINGS, *CSV_ENDINGS, *PARQUET_ENDINGS)
PACKED_ENDINGS = (".gz", ".gzip", ".zst", ".zstd")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset.

    `name` is what rows and errors show, `address` the entry that names it, `origin` its full
    address, a hub's revision pinned to its commit. `download` and `tag` (of its bytes) are for
    files on servers.
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
        return self.tag() if self.tag else "commit"

    def fetch(self, scratch: Path) -> tuple[Path, Snapshot | None]:
        """Bring the file to this machine, and say in which state; a local one stays in place."""
        if self.local is not None:
            return self.local, None
        target = scratch / self.name.rstrip("/").rpartition("/")[2]
        scratch.mkdir(parents=True, exist_ok=True)
        assert self.download is not None
        snapshot = Snapshot(version=self.tag()) if self.tag else None
        self.download(target)
        return target, snapshot


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
    """Choose the files that a path, folder or glob names; UserError for a bad pattern."""
    if wanted in names:
        return [wanted]
    if _WILDCARD.search(wanted):
        from fsspec.utils import glob_translate

        try:
            pattern = re.compile(glob_translate(wanted))
        except (ValueError, re.error) as error:
            raise UserError(f"{wanted!r} is not a pattern for files: {error}") from None
        chosen = [name for name in names if pattern.match(name)]
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


def split_address(address: str) -> tuple[str, str, str]:
    """Split `s3://bucket/key` into its three parts; UserError if it names no bucket."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UserError(f"{address} names no bucket; write {scheme}://bucket/key")
    return scheme, bucket, key


def find_in_bucket(address: str) -> list[SourceFile]:
    """Find the objects that an address names; UserError if none, RetryableError by the server."""
    scheme, bucket, key = split_address(address)
    store: S3Store | ObjectStore
    store = S3Store(bucket, "") if scheme == "s3" else ObjectStore(scheme, bucket)
    keys = []
    if key and not key.endswith("/") and not has_wildcard(key):
        with suppress(NotThere):
            store.tag(key)
            keys = [key]
    keys = keys or choose(list(store.keys(fixed_folder(key).strip("/"))), key)
    if not keys:
        raise UserError(
            f"{address} does not exist: there is no JSONL, CSV or Parquet file there; check "
            "bucket and key"
        )
    return [
        SourceFile(
            store.uri_of(name),
            address,
            store.uri_of(name),
            download=partial(store.get_foreign, name),
            tag=partial(store.tag, name),
        )
        for name in keys
    ]


_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)


def parse_address(address: str) -> tuple[str, str, str]:
    """Return repository, revision and path of an address; UserError if it names no dataset."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"{address} is not a dataset on the hub; write "
            "hf://datasets/owner/name@revision/path, the revision best a full commit"
        )
    # A slash in a revision is written %2F, as the hub's own addresses have it.
    revision = unquote(match["revision"] or "main")
    return match["repository"], revision, (match["path"] or "").strip("/")


def find_on_hub(address: str) -> list[SourceFile]:
    """Find the files of a dataset on the hub; UserError if none, RetryableError by the hub."""
    from huggingface_hub import HfApi

    repository, revision, path = parse_address(address)
    info = call_hub(
        f"dataset {address!r}", lambda: HfApi().dataset_info(repository, revision=revision)
    )
    chosen = choose([entry.rfilename for entry in info.siblings or []], path)
    if not chosen:
        raise UserError(
            f"{address} does not exist: the repository has no JSONL, CSV or Parquet file there"
        )
    root, commit = f"hf://datasets/{repository}", str(info.sha)
    given = address.removeprefix(root).partition("/")[0]
    return [
        SourceFile(
            f"{root}{given}/{name}",
            address,
            f"{root}@{commit}/{name}",
            download=partial(_download, address, repository, commit, name),
        )
        for name in chosen
    ]


def _download(address: str, repository: str, commit: str, name: str, target: Path) -> None:
    from huggingface_hub import hf_hub_download

    folder = target.parent / "hub"
    found = call_hub(
        f"dataset {address!r}",
        lambda: hf_hub_download(
            repository, name, repo_type="dataset", revision=commit, local_dir=folder
        ),
    )
    Path(found).replace(target)
    shutil.rmtree(folder)


KINDS = (
    "a path, a folder, a glob, an address (file://, s3://, gs://, az://, hf://datasets/…), "
    f"or {' or '.join(SAMPLES)}"
)


def find_files(addresses: Iterable[str]) -> list[SourceFile]:
    """Find the files that addresses name, each once; UserError if an address names nothing."""
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
    scheme = address[: max(0, address.find("://"))]
    if scheme in ("s3", *EXTRAS):
        split_address(address)
        return find_in_bucket(address) if ask_servers else []
    if scheme == "hf":
        parse_address(address)
        return find_on_hub(address) if ask_servers else []
    if scheme == "file":
        path = unquote(address.removeprefix("file://").removeprefix("localhost"))
        return _find_local(address, path, as_uri=True)
    if address in SAMPLES:
        return [SourceFile(address, address, address, SAMPLES[address])]
    if "://" in address:
        raise UserError(
            f"{address}: unknown kind of address; give {KINDS}; the rows of a database are "
            "written as Parquet first (docs/do/tables.md)"
        )
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


_NAMED = 3


class DatasetVersion(BaseModel):
    """The version of a model's data: fingerprint of each file, by its address."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, str]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fingerprints; of 64 characters."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def dataset_version(addresses: Sequence[str]) -> DatasetVersion:
    """Return the version of the data that addresses name now; see `find_files`."""
    return DatasetVersion(files={f.origin: f.fingerprint() for f in find_files(addresses)})


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return what changed between the files of two versions, as part of a sentence."""
    kinds = {
        "new": sorted(new.keys() - old.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
        "gone": sorted(old.keys() - new.keys()),
    }

    def named(files: Sequence[str]) -> str:
        shown = ", ".join(name.rsplit("/", 1)[-1] for name in files[:_NAMED])
        return f"{shown} and {len(files) - _NAMED} more" if len(files) > _NAMED else shown

    return "; ".join(f"{kind}: {named(files)}" for kind, files in kinds.items() if files)
