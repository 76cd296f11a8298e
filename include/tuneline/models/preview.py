"""What is known of a model before its weights are fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneline.errors import TunelineError
from tuneline.models.base_model import model_files, read_json
from tuneline.models.cache import cache_root, find_cached
from tuneline.models.license import ORIGIN_FILE, read_license
from tuneline.models.resolver import classifier_origin, origin_of
from tuneline.models.source import ListedSource, Source
from tuneline.models.wheel import WheelSource

# The folder of a model's files, perhaps without its weights, and the sizes of all of them in bytes.
Preview = tuple[Path, dict[str, int]]


@contextmanager
def preview(uri: str) -> Iterator[Preview | None]:
    """Give what this machine can see of a base model without fetching its weights.

    None is given for a model that it can't see: its address needs a network, a package or
    credentials that only pods have.

    Raises:
        UserError: if a directory is no complete model.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-base-") as folder:
        yield _seen(uri, Path(folder))


def _seen(uri: str, folder: Path) -> Preview | None:
    if "://" not in uri or uri.startswith("file://"):
        origin = origin_of(uri, _quiet)
        assert isinstance(origin, Path)
        return origin, sizes_of(origin)
    try:
        origin = origin_of(uri, _quiet)
        assert isinstance(origin, Source)
        return small_files(origin, folder)
    except (TunelineError, ImportError):
        return None


def small_files(source: Source, folder: Path) -> Preview | None:
    """Return the cached files of a source, or fetch all but the weights.

    Args:
        source: the model at its origin.
        folder: an empty folder.

    Returns:
        None for a source whose files can only be fetched together.
    """
    if cached := find_cached(cache_root(), source.entry):
        return cached, sizes_of(cached)
    return (folder, source.fetch_small(folder)) if isinstance(source, ListedSource) else None


def classifier_license(uri: str, setting: str) -> tuple[str | None, str]:
    """Return the licence of a token classifier, and where it is stated.

    Args:
        uri: its address, as `fetch_files` takes it.
        setting: the setting that names it, for errors.

    Raises:
        UserError: if it is unknown.
        RetryableError: if network or server failed.
    """
    origin = classifier_origin(uri, setting)
    if isinstance(origin, WheelSource):
        return origin.wheel.license, origin.wheel.license_source
    with tempfile.TemporaryDirectory(prefix="tuneline-license-") as folder:
        seen = (origin, {}) if isinstance(origin, Path) else small_files(origin, Path(folder))
        assert seen is not None, "files of buckets and hubs are listed"
        directory, _ = seen
        config = directory / "config.json"
        return read_license(directory, read_json(config) if config.is_file() else {})


def sizes_of(directory: Path) -> dict[str, int]:
    """Return the sizes of a model's files in bytes, with the note on its origin."""
    origin = directory / ORIGIN_FILE
    files = [*model_files(directory), *([origin] if origin.is_file() else [])]
    return {path.name: path.stat().st_size for path in files}


def _quiet(_line: str) -> None:
    """Drop a line of progress; fetch_base logs it again."""
