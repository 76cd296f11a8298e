"""The candidate of a run that ships the adapter unmerged: a base in its engine's form, and both.

The base is shared: what was made of it lies in the store once, by its hash, whichever adapters are
served on it. See `tuneline.bases`.
"""

from __future__ import annotations

from pathlib import Path

from tuneline.artifacts.deployment import DECISION, AdapterForm, Apart, BaseForm, Choice
from tuneline.artifacts.releases import ADAPTER_FILE, MODEL_FILE, Release
from tuneline.artifacts.training import ADAPTER, ADAPTER_GGUF
from tuneline.bases import base_of, fetch_form, keep_form, own_files
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef
from tuneline.models.base_model import digest_of
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import Engine, ServedAdapter, ServedModel
from tuneline.serving.engines.identity import hash_files, whole_digest
from tuneline.step_context import StepContext
from tuneline.store import CorruptObject

# The adapter's name in the API of a server that a step starts.
ADAPTER_NAME = "tuned"


def ships_apart(ctx: StepContext) -> bool:
    """Return True if adapter_merging decided that the adapter ships unmerged."""
    try:
        decided = DECISION.exists(ctx)
    except UserError:
        # It was not run; the checklist says so, and what ships is merged.
        return False
    return decided and DECISION.read(ctx).decision == "apart"


def run_adapter(ctx: StepContext, engine: Engine) -> ServedAdapter:
    """Return the run's adapter in the form that an engine loads."""
    path = (ADAPTER_GGUF if engine.form == "gguf" else ADAPTER).fetch(ctx)
    files = ctx.fetched_hashes(path)
    return ServedAdapter(ADAPTER_NAME, path, whole_digest(path, files), files)


def hashed_adapter(path: Path) -> ServedAdapter:
    """Return an adapter that lies here, with the hashes of its file or files."""
    sha256, files = hash_files(path)
    return ServedAdapter(ADAPTER_NAME, path, sha256, files)


def keep_apart(ctx: StepContext, engine: Engine, variant: str, model: ServedModel) -> Apart:
    """Keep a variant of the base in the store, and describe it and the adapter on it.

    Args:
        ctx: the step.
        engine: the engine that loads them.
        variant: name of the variant.
        model: its bytes and the adapter.
    """
    assert model.adapter is not None
    base = base_of(ctx)
    form = own_files(ctx, base)
    if model.path != base.path:
        files, one_file = dict(model.files), model.path.is_file()
        sha256 = next(iter(files.values())) if one_file else digest_of(files)
        named = {MODEL_FILE: sha256} if one_file else files
        made = BaseForm(
            uri=base.uri,
            digest=base.digest,
            variant=variant,
            made_by=engine.exporter(),
            sha256=sha256,
            files=named,
        )
        form = keep_form(ctx.run.store, model.path, named, made, ctx.log)
    adapter = AdapterForm(sha256=model.adapter.sha256, files=dict(model.adapter.files))
    return Apart(base=form, adapter=adapter)


def chosen_apart(ctx: StepContext, choice: Choice, apart: Apart) -> ServedModel:
    """Return the base and the adapter that production_quantization chose.

    Raises:
        TunelineError: if the run's adapter is another one.
        CorruptObject: if the base has other bytes than were chosen.
    """
    adapter = run_adapter(ctx, get_engine(choice.engine))
    if adapter.sha256 != apart.adapter.sha256:
        raise TunelineError(
            f"the adapter has SHA-256 {adapter.sha256}, but choice.json was made with "
            f"{apart.adapter.sha256}; run production_quantization again"
        )
    path = fetch_form(ctx.run.store, apart.base, ctx.log, own=lambda: base_of(ctx))
    _note_base(ctx, apart.base, path)
    return ServedModel(choice.engine, path, apart.base.sha256, apart.base.files).beside(adapter)


def released_apart(ctx: StepContext, release: Release, apart: Apart, folder: Path) -> ServedModel:
    """Fetch the base and the adapter that a release serves.

    Args:
        ctx: the step.
        release: the release.
        apart: what it serves.
        folder: folder for the adapter.

    Raises:
        UserError: if a file is missing.
        CorruptObject: if a file has other bytes than the release states.
    """
    refs = release.adapter_files()
    for name, ref in refs.items():
        ctx.note_input(f"released/{ref.name}", ref.uri, release.fetch(ref, folder / name))
    adapter = hashed_adapter(folder / ADAPTER_FILE if ADAPTER_FILE in refs else folder)
    if adapter.sha256 != apart.adapter.sha256:
        raise CorruptObject(
            f"the adapter of {release.uri} has SHA-256 {adapter.sha256}, the manifest says "
            f"{apart.adapter.sha256}"
        )
    path = fetch_form(release.store, apart.base, ctx.log)
    _note_base(ctx, apart.base, path)
    return ServedModel(release.engine, path, apart.base.sha256, apart.base.files).beside(adapter)


def _note_base(ctx: StepContext, form: BaseForm, path: Path) -> None:
    """Note a base among the inputs; its files have been compared with their hashes."""
    where = form.uri if form.key is None else ctx.run.store.uri_of(form.key)
    for name, sha256 in form.files.items():
        file = path if path.is_file() else path / name
        ctx.inputs[f"base/{name}"] = FileRef(
            name=f"base/{name}", uri=f"{where}/{name}", sha256=sha256, bytes=file.stat().st_size
        )
