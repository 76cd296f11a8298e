"""The base model of a run, taken from where fetch_base left it."""

from __future__ import annotations

from pathlib import Path

from tuneline.artifacts.base_model import BASE, StoredBase
from tuneline.bases.shelf import check_files, directory_of
from tuneline.errors import UserError
from tuneline.models import BaseModel, cache_root, resolve
from tuneline.models.base_model import is_weights
from tuneline.models.cache import Log, cached_model, find_cached, require_space
from tuneline.models.origins import at_once
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import open_store


def base_of(ctx: StepContext, *, weights: bool = True) -> BaseModel:
    """Return the base model of a step's run as a directory.

    A run whose fetch_base was not run fetches the model from its address.

    Args:
        ctx: the step.
        weights: False where configuration, tokenizer and licence are enough; the directory may
            then lack the weights.

    Raises:
        UserError: if the files are not where the run left them, or differ.
        CorruptObject: if a file from the store has other bytes than it was stored with.
        RetryableError: if network, server or disk failed.
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
    """Return a directory with a stored model: the stored one, or one in the cache.

    Args:
        stored: the model.
        root: the cache.
        log: function that takes one line of progress.
        weights: whether its weights are needed.
    """
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
