"""The base model of a run: fetched once, stored, given to every step, kept as it is served."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import ValidationError

from tuneline.artifacts.deployment import REFERENCE, BaseForm
from tuneline.artifacts.releases import MODEL_FILE
from tuneline.artifacts.training import BASE, StoredBase, StoredFile
from tuneline.errors import UserError
from tuneline.evidence import FileRef
from tuneline.models import BaseModel, cache_root, resolve
from tuneline.models.base_model import describe, is_weights
from tuneline.models.cache import Log, cached_model, find_cached, require_space
from tuneline.models.origins import ListedSource, Source, at_once
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import (
    AlreadyThere,
    CorruptObject,
    FileStore,
    NotThere,
    Store,
    open_store,
    sha256_file,
)


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
        """Put a model here, file by file; files that lie here already are kept."""
        folder = f"{self._prefix}{source.entry}"
        files: dict[str, StoredFile] = {}

        def transfer(name: str) -> None:
            key = f"{folder}/{name}"
            ref = self._store.find(key)
            # An object of another size is not that file; writing it once more says so.
            if ref is None or sizes[name] not in (0, ref.bytes):
                ref = self._put_one(source, key, here / name, scratch)
            path = directory_of(self._store.uri_of(key))
            stamp = None if path is None else path.stat().st_mtime_ns
            files[name] = StoredFile(sha256=ref.sha256, bytes=ref.bytes, mtime_ns=stamp)

        at_once(transfer, sizes)
        hashes = {name: files[name].sha256 for name in sorted(files)}
        model = describe(source.uri, here, hashes, revision=source.revision)
        listing = _listing(model, self._store.uri_of(folder), dict(sorted(files.items())))
        raw = listing.model_dump_json(indent=1).encode()
        # Another one was faster, with the same files.
        with suppress(AlreadyThere):
            self._store.put_bytes(f"{folder}.json", raw, once=True)
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


def in_place(uri: str, directory: Path, hashes: Mapping[str, str]) -> StoredBase:
    """List a directory that pods see themselves, where its files stay."""
    stats = {name: (directory / name).stat() for name in hashes}
    files = {
        name: StoredFile(sha256=sha256, bytes=stats[name].st_size, mtime_ns=stats[name].st_mtime_ns)
        for name, sha256 in hashes.items()
    }
    return _listing(describe(uri, directory, hashes), directory.as_uri(), files)


def _listing(model: BaseModel, place: str, files: dict[str, StoredFile]) -> StoredBase:
    shared = StoredBase.model_fields.keys() - {"place", "files"}
    return StoredBase(**{name: getattr(model, name) for name in shared}, place=place, files=files)


def directory_of(uri: str) -> Path | None:
    """Return the path of a `file://` URI, None for any other."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None


def check_files(directory: Path, base: StoredBase) -> None:
    """Compare a directory with the listing of a model, by hash where size or time differ."""
    for name, file in base.files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(
                f"{path} is not there: the base model of this run is on a disk that this machine "
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


def base_of(ctx: StepContext, *, weights: bool = True) -> BaseModel:
    """Return the base model of a step's run as a directory.

    Without `weights`, configuration, tokenizer and licence are enough. A run whose fetch_base was
    not run fetches the model from its address.
    """
    stored = stored_base(ctx)
    if stored is None:
        return resolve(ctx.config.base_model, log=ctx.log)
    return described(stored, local_copy(stored, cache_root(), ctx.log, weights=weights))


def stored_base(ctx: StepContext) -> StoredBase | None:
    """Return where the run's base model lies, None if fetch_base was not run."""
    above = ctx.run.meta.get("trial_of")
    if above is not None:
        return BASE.find(Run.open(above))
    try:
        ctx.entry(BASE.step)
    except UserError:
        return None
    return BASE.read(ctx)


def described(stored: StoredBase, directory: Path) -> BaseModel:
    """Return a stored model with its files in a directory."""
    facts = stored.model_dump(exclude={"place", "files"})
    hashes = {name: file.sha256 for name, file in stored.files.items()}
    return BaseModel(**facts, path=directory, files=hashes)


def local_copy(stored: StoredBase, root: Path, log: Log, *, weights: bool) -> Path:
    """Return a directory with a stored model: the stored one, or one in the cache."""
    directory = directory_of(stored.place)
    if directory is not None:
        check_files(directory, stored)
        return directory
    # On the machine that fetched it, the cache has the model under its own name already.
    if cached := find_cached(root, stored.place.rpartition("/")[2]):
        return cached
    wanted = [name for name in stored.files if weights or not is_weights(name)]
    total = sum(stored.files[name].bytes for name in wanted)

    def fill(target: Path) -> dict[str, str]:
        require_space(target, total)
        log(f"taking the base model ({total / 1e6:.0f} MB) from {stored.place}")
        store = open_store(stored.place)
        hashes = {name: stored.files[name].sha256 for name in wanted}
        at_once(lambda n: store.get_file(n, target / n, sha256=hashes[n]), wanted)
        return hashes

    kind = "base" if weights else "base-text"
    return cached_model(root, kind, stored.digest, fill, log=log)[0]


# Beside the shelf's entries, which are named by where a base came from.
PREFIX = "bases/served"


def own_files(ctx: StepContext, base: BaseModel) -> BaseForm:
    """Describe the files of a base model itself, which an engine loads as they are."""
    stored, shelf = stored_base(ctx), ctx.run.store.uri_of("bases/")
    # None if it lies outside of the store.
    inside = stored is not None and stored.place.startswith(shelf)
    return BaseForm(
        uri=base.uri,
        digest=base.digest,
        variant=REFERENCE,
        key=ctx.run.store.key_of(stored.place) if stored and inside else None,
        sha256=base.digest,
        files=dict(base.files),
    )


def keep_form(
    store: Store, path: Path, files: Mapping[str, str], form: BaseForm, log: Log
) -> BaseForm:
    """Put a form into the store, unless it lies there already."""
    folder = f"{PREFIX}/{form.sha256}"
    log(f"keeping the base model's {form.variant} in {store.uri_of(folder)}")
    for name, sha256 in files.items():
        key = f"{folder}/{name}"
        try:
            store.put_file(key, path if path.is_file() else path / name, once=True)
        except AlreadyThere:
            found = store.find(key)
            if found is None or found.sha256 != sha256:
                raise CorruptObject(
                    f"{store.uri_of(key)} has other bytes than its name says; delete it and run "
                    "production_quantization again"
                ) from None
    return form.model_copy(update={"key": folder, "files": dict(files)})


def fetch_form(
    store: Store,
    form: BaseForm,
    log: Log,
    own: Callable[[], BaseModel] | None = None,
    before: Callable[[Path], object] = lambda path: None,
) -> Path:
    """Return the file or the folder of a form on this machine, compared with its hashes.

    `own` gives the base model where a run has it, for a form that is its own files; `before` is
    called with each file before it is hashed.
    """

    def fill(target: Path) -> dict[str, str]:
        log(f"taking the base model from {store.uri_of(str(form.key))}")
        hashes = form.files
        at_once(lambda n: store.get_file(f"{form.key}/{n}", target / n, sha256=hashes[n]), hashes)
        return form.files

    def differs(name: str) -> bool:
        before(folder / name)
        return sha256_file(folder / name) != form.files[name]

    of_run = own is not None and form.made_by is None
    if form.key is None or of_run:
        base = own() if own is not None else resolve(form.uri, log=log)
        if base.digest != form.digest:
            raise CorruptObject(
                f"{base.uri} has the digest {base.digest}, but the adapter was evaluated on "
                f"{form.digest}; restore that version of the base model"
            )
        folder = base.path
    else:
        folder = cached_model(cache_root(), "served-base", form.sha256, fill, log=log)[0]
    if not of_run and (differing := list(filter(differs, form.files))):
        had = f"{folder} had other bytes than the base that was evaluated in {', '.join(differing)}"
        if not folder.is_relative_to(cache_root()):
            raise CorruptObject(f"{had}; restore them")
        shutil.rmtree(folder)
        raise CorruptObject(f"{had} and was deleted; try again")
    return folder / MODEL_FILE if list(form.files) == [MODEL_FILE] else folder
