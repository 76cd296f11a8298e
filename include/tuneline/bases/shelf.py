"""The shelf of base models: each revision lies there once, for the pods of all runs.

The shelf is the folder `bases/` of the store, or a volume that pods share (`pods.model_cache`).
`<entry>/` holds the files, each written whole and once; `<entry>.json` lists them and is written
last. Whoever dies on the way leaves whole files, which the next one keeps. Two that fetch the same
revision at once write the same bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import ValidationError

from tuneline.artifacts.base_model import StoredBase, StoredFile
from tuneline.errors import UserError
from tuneline.evidence import FileRef
from tuneline.models.base_model import BaseModel, describe
from tuneline.models.cache import require_space
from tuneline.models.origins import ListedSource, Source, at_once
from tuneline.run import Run
from tuneline.store import AlreadyThere, CorruptObject, FileStore, NotThere, Store, sha256_file


class Shelf:
    """The shelf of a run."""

    def __init__(self, run: Run) -> None:
        """Open the shared volume where there is one, else the run's store."""
        volume = os.environ.get("TUNELINE_BASES")
        self._store: Store = FileStore(Path(volume)) if volume else run.store
        self._prefix = "" if volume else "bases/"

    def find(self, entry: str) -> StoredBase | None:
        """Return the listing of a model that lies here whole, None without one."""
        key = f"{self._prefix}{entry}.json"
        try:
            return StoredBase.model_validate_json(self._store.get_bytes(key))
        except NotThere:
            return None
        except ValidationError as error:
            raise CorruptObject(
                f"{self._store.uri_of(key)} is not a valid listing of a base model "
                f"({error.errors()[0]}); delete it and fetch the model again"
            ) from None

    def put(
        self, source: Source, here: Path, sizes: Mapping[str, int], scratch: Path
    ) -> StoredBase:
        """Put a model here, file by file; files that lie here already are kept.

        Args:
            source: where the files come from.
            here: a folder that holds some or all of them.
            sizes: all of its files by name, with their sizes in bytes.
            scratch: a folder for files on their way.

        Raises:
            CorruptObject: if a file of the same name lies here with other bytes.
            RetryableError: if network, server or disk failed.
        """
        folder = f"{self._prefix}{source.entry}"
        files: dict[str, StoredFile] = {}

        def transfer(name: str) -> None:
            key = f"{folder}/{name}"
            ref = self._store.find(key)
            # An object of another size is not that file; writing it once more says so.
            if ref is None or sizes[name] not in (0, ref.bytes):
                ref = self._put_one(source, key, here / name, scratch)
            files[name] = self._noted(key, ref)

        at_once(transfer, sizes)
        hashes = {name: files[name].sha256 for name in sorted(files)}
        model = describe(source.uri, here, hashes, revision=source.revision)
        listing = _listing(model, self._store.uri_of(folder), dict(sorted(files.items())))
        text = listing.model_dump_json(indent=1)
        # Another one was faster, with the same files.
        with suppress(AlreadyThere):
            self._store.put_bytes(f"{folder}.json", text.encode(), once=True)
        return listing

    def _put_one(self, source: Source, key: str, local: Path, scratch: Path) -> FileRef:
        with tempfile.TemporaryDirectory(dir=scratch) as way:
            path = local
            if not path.exists():
                assert isinstance(source, ListedSource), "other sources are on this machine whole"
                require_space(Path(way), source.sizes()[local.name])
                source.fetch(local.name, Path(way))
                path = Path(way) / local.name
            try:
                return self._store.put_file(key, path, once=True, link=True)
            except AlreadyThere:
                there = self._store.find(key)
                if there is None or there.sha256 != sha256_file(path):
                    raise CorruptObject(
                        f"{self._store.uri_of(key)} differs from {local.name} of {source.uri}; "
                        "delete it and fetch the model again"
                    ) from None
                return there

    def _noted(self, key: str, ref: FileRef) -> StoredFile:
        path = directory_of(self._store.uri_of(key))
        stamp = None if path is None else path.stat().st_mtime_ns
        return StoredFile(sha256=ref.sha256, bytes=ref.bytes, mtime_ns=stamp)


def in_place(uri: str, directory: Path, hashes: Mapping[str, str]) -> StoredBase:
    """List a directory that pods see themselves, where its files stay.

    Args:
        uri: the address that was requested.
        directory: the directory.
        hashes: SHA-256 of its files by name.
    """
    files = {
        name: StoredFile(
            sha256=sha256,
            bytes=(directory / name).stat().st_size,
            mtime_ns=(directory / name).stat().st_mtime_ns,
        )
        for name, sha256 in hashes.items()
    }
    return _listing(describe(uri, directory, hashes), directory.as_uri(), files)


def _listing(model: BaseModel, place: str, files: dict[str, StoredFile]) -> StoredBase:
    return StoredBase(
        **{
            name: getattr(model, name)
            for name in StoredBase.model_fields.keys() - {"place", "files"}
        },
        place=place,
        files=files,
    )


def directory_of(uri: str) -> Path | None:
    """Return the path of a `file://` URI, None for any other."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None


def check_files(directory: Path, base: StoredBase) -> None:
    """Compare a directory with the listing of a model, by hash where size or time differ.

    Raises:
        UserError: if a file is missing or has other bytes.
    """
    for name, file in base.files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(
                f"{path} is not there: the base model of this run lies on a disk that this machine "
                "does not see, or was deleted; run `tuneline run fetch-base` again"
            )
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (file.bytes, file.mtime_ns):
            continue
        if sha256_file(path) != file.sha256:
            raise UserError(
                f"{path} has changed since the run fetched its base model; restore it, or delete "
                f"{directory} if it is a copy in the store, and start a new run"
            )
