"""Base models in the form that an engine loads with adapters beside it.

What was made of a base (a GGUF file, a quantised checkpoint) lies once in the store, by its hash,
for all adapters that are served on it: another version of the exporter could make other bytes.
The base model's own files are not copied; they come from where they lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tuneline.artifacts.base_model import StoredBase
from tuneline.artifacts.deployment import REFERENCE, BaseForm
from tuneline.artifacts.releases import MODEL_FILE
from tuneline.bases.of_run import stored_base
from tuneline.models import BaseModel, cache_root, resolve
from tuneline.models.cache import Log, cached_model
from tuneline.models.origins import at_once
from tuneline.step_context import StepContext
from tuneline.store import AlreadyThere, CorruptObject, Store, sha256_file

# Beside the shelf's entries, which are named by where a base came from.
PREFIX = "bases/served"


def own_files(ctx: StepContext, base: BaseModel) -> BaseForm:
    """Describe the files of a base model itself, which an engine loads as they are."""
    stored = stored_base(ctx)
    return BaseForm(
        uri=base.uri,
        digest=base.digest,
        variant=REFERENCE,
        key=None if stored is None else _key_in(ctx.run.store, stored),
        sha256=base.digest,
        files=dict(base.files),
    )


def keep_form(
    store: Store, path: Path, files: Mapping[str, str], form: BaseForm, log: Log
) -> BaseForm:
    """Put a form into the store, unless it lies there already.

    Args:
        store: the store.
        path: the file, or the folder with the files.
        files: the names that they get in the store, and their hashes.
        form: its description.
        log: function that takes one line of progress.

    Returns:
        The description with the place.

    Raises:
        CorruptObject: if the store has other bytes under that hash.
    """
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
    store: Store, form: BaseForm, log: Log, own: Callable[[], BaseModel] | None = None
) -> Path:
    """Return the file or the folder of a form on this machine, compared with its hashes.

    Args:
        store: the store that holds it, if a store does.
        form: its description.
        log: function that takes one line of progress.
        own: function that returns the base model where a run has it already, for a form that is
            its own files.

    Raises:
        UserError: if a file is missing.
        CorruptObject: if a file has other bytes.
    """
    if form.key is None or (form.made_by is None and own is not None):
        base = own() if own is not None else resolve(form.uri, log=log)
        if base.digest != form.digest:
            raise CorruptObject(
                f"{base.uri} has the digest {base.digest}, but the adapter was evaluated on "
                f"{form.digest}; restore that version of the base model"
            )
        return base.path
    folder = _cached(store, form, log)
    differing = [n for n, sha256 in form.files.items() if sha256_file(folder / n) != sha256]
    if differing:
        shutil.rmtree(folder)
        raise CorruptObject(
            f"{folder} had other bytes than the base that was evaluated in {', '.join(differing)} "
            "and was deleted; try again"
        )
    return folder / MODEL_FILE if list(form.files) == [MODEL_FILE] else folder


def _cached(store: Store, form: BaseForm, log: Log) -> Path:
    def fill(target: Path) -> dict[str, str]:
        log(f"taking the base model from {store.uri_of(str(form.key))}")
        at_once(
            lambda n: store.get_file(f"{form.key}/{n}", target / n, sha256=form.files[n]),
            form.files,
        )
        return form.files

    return cached_model(cache_root(), "served-base", form.sha256, fill, log=log)[0]


def _key_in(store: Store, stored: StoredBase) -> str | None:
    """Return the key of a base's folder; None if it lies outside of the store."""
    inside = stored.place.startswith(store.uri_of("bases/"))
    return store.key_of(stored.place) if inside else None
