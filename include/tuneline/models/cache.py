"""The cache of base models: filled in a temporary directory, renamed under a file lock."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuneline.errors import RetryableError
from tuneline.files import write_whole
from tuneline.models.base_model import FILES_FILE, classifier_files, model_files
from tuneline.store import sha256_file

Log = Callable[[str], object]


def cache_root(cache: Path | None = None) -> Path:
    """Return the cache directory: the argument, `$TUNELINE_CACHE` or `~/.cache/tuneline`."""
    if cache is not None:
        return cache
    configured = os.environ.get("TUNELINE_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "tuneline"


def cached_model(
    root: Path, name: str, key: str, fill: Callable[[Path], dict[str, str] | None], *, log: Log
) -> tuple[Path, dict[str, str]]:
    """Return the directory of a cached model; fetch it if it is not there.

    `key` identifies the content (hash, commit, listing of a bucket). `fill` puts the files into an
    empty directory and returns their hashes where it knows them. Returns the directory and the
    SHA-256 of its files by name.
    """
    entry = root / "models" / entry_name(name, key)
    files = _known_files(entry)
    if files is not None:
        return entry, files
    with _disk_errors(entry), _lock(root / "locks" / f"{entry.name}.lock", log):
        files = _known_files(entry)
        if files is None:
            shutil.rmtree(entry, ignore_errors=True)
            files = _install(entry, fill)
    return entry, files


def entry_name(name: str, key: str) -> str:
    """Return the name of the entry of some content, in a cache or a store."""
    return f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def find_cached(root: Path, entry: str) -> Path | None:
    """Return the directory of a model that is in the cache, None if it is not."""
    directory = root / "models" / entry
    return None if _known_files(directory) is None else directory


def require_space(folder: Path, needed: int) -> None:
    """Refuse to fill a disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RetryableError(
            f"the base model needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB "
            "are free; free some, point TUNELINE_CACHE at another disk, or have pods share a "
            "volume (pods.model_cache)"
        )


def _install(entry: Path, fill: Callable[[Path], dict[str, str] | None]) -> dict[str, str]:
    entry.parent.mkdir(parents=True, exist_ok=True)
    # A killed process leaves an incomplete entry; we hold the lock, so it no longer runs.
    for left in entry.parent.glob(f".{entry.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        files = fill(staged)
        here = classifier_files(staged)
        files = files or {name: sha256_file(path) for name, path in here.items()}
        stored = {
            name: {"sha256": files[name], "bytes": path.stat().st_size}
            for name, path in here.items()
        }
        document = {"schema": "tuneline/model-files/1", "files": stored}
        (staged / FILES_FILE).write_text(json.dumps(document, indent=1), encoding="utf-8")
        # Other users of a shared cache must be able to read it.
        for path in (staged, *staged.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        staged.rename(entry)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return files


def _known_files(entry: Path) -> dict[str, str] | None:
    """Hashes of an entry's files as stored; None when it is absent or visibly damaged."""
    listing = entry / FILES_FILE
    if not listing.is_file():
        return None
    try:
        stored: dict[str, Any] = json.loads(listing.read_text(encoding="utf-8"))["files"]
        sizes = {name: path.stat().st_size for name, path in classifier_files(entry).items()}
        if sizes != {name: about["bytes"] for name, about in stored.items()}:
            return None
        return {name: str(about["sha256"]) for name, about in stored.items()}
    except (ValueError, KeyError, TypeError, OSError):
        return None


def hash_directory(
    root: Path, directory: Path, files: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """Return the SHA-256 of a user's model files, remembered by size and modification time."""
    if files is None:
        files = {path.name: path for path in model_files(directory)}
    key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    memory = root / "hashes" / f"{key}.json"
    known: Mapping[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
    fresh: dict[str, list[Any]] = {}
    for name, path in files.items():
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        kept = known.get(name, [])
        fresh[name] = list(kept) if kept[:2] == stamp else [*stamp, sha256_file(path)]
    if fresh != known:
        with _disk_errors(memory):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(fresh).encode(), lasting=False)
    return {name: str(entry[2]) for name, entry in fresh.items()}


@contextmanager
def _lock(path: Path, log: Log) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another process is fetching the same base model; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise RetryableError(
            f"can't write {place}: {error.strerror}; free some disk space there "
            "or point TUNELINE_CACHE at another disk"
        ) from error
