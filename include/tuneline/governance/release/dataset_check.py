"""Compare the dataset of a release, and the files that it was read from, with their hashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import TypeAdapter, ValidationError

from tuneline.artifacts.data import SourceKept
from tuneline.artifacts.governance import Manifest
from tuneline.errors import TunelineError
from tuneline.store import NotThere, S3Store, Store, sha256_file

_SOURCES = TypeAdapter(list[SourceKept])


def dataset_difference(store: Store, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Recompute the hash of the dataset that training read.

    Returns:
        Differences, and what could not be compared; one sentence each.
    """
    stated = manifest.dataset_file
    if stated is None:
        return [], [f"the manifest of {manifest.version} states no hash of its dataset"]
    uri = store.uri_of(stated.key)
    try:
        ref = store.rehash(stated.key)
    except NotThere:
        return [f"{uri}, the dataset of {manifest.version}, is missing"], []
    except TunelineError as error:
        return [str(error)], []
    if ref.sha256 != stated.sha256:
        return [
            f"{uri} is not the dataset of {manifest.version}: its SHA-256 is {ref.sha256}, the "
            f"manifest says {stated.sha256}"
        ], []
    if ref.bytes != stated.bytes:
        return [f"{uri} has {ref.bytes} bytes, the manifest says {stated.bytes}"], []
    return [], []


def check_sources(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Recompute the hashes of the files that the dataset was read from.

    Files of this machine and of buckets are read again. A file of a hub is not fetched.

    Returns:
        Differences, and what could not be compared; one sentence each.
    """
    differences, unchecked = [], []
    try:
        sources = _SOURCES.validate_python(manifest.dataset.get("sources") or [])
    except ValidationError as error:
        return [f"the sources of {manifest.version} are damaged: {error.errors()[0]['msg']}"], []
    for source in sources:
        try:
            hashing = _hashing_of(source)
            found = hashing() if hashing else None
        except (TunelineError, OSError) as error:
            unchecked.append(f"{source.name}, a source of the dataset: {error}")
            continue
        if found is None:
            unchecked.append(
                f"{source.name}, a source of the dataset, can't be read from here; its hash is as "
                "it was declared"
            )
        elif found != source.sha256:
            differences.append(
                f"{source.name}, a source of the dataset, has changed since: its SHA-256 is "
                f"{found}, the manifest says {source.sha256}"
            )
    return differences, unchecked


def _hashing_of(source: SourceKept) -> Callable[[], str] | None:
    """Return a function that hashes a source; None if it can't be read from here."""
    place = urlparse(source.origin or source.name)
    if place.scheme == "s3" and place.netloc:
        bucket, key = S3Store(place.netloc, ""), place.path.lstrip("/")
        return lambda: bucket.hash_foreign(key)
    path = Path(unquote(place.path) if place.scheme == "file" else source.name)
    # A relative path was meant from the folder in which the run was started.
    if place.scheme in ("", "file") and path.is_absolute() and path.is_file():
        return lambda: sha256_file(path)
    return None
