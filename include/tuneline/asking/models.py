"""The models that evaluation compares, in the form of the engine that ships, and their servers.

The candidate is exactly the bytes that ship: the variant that production_quantization chose, what
build_engine compiled of it, or a variant of the base (shared, see `tuneline.bases`) with the
adapter beside it. The base is the untuned model in the form of the same engine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.artifact import Artifact, FolderArtifact
from tuneline.artifacts.deployment import (
    CHECKPOINT,
    CHOICE,
    DECISION,
    ENGINE,
    ENGINE_IDENTITY,
    MODEL,
    REFERENCE,
    AdapterForm,
    Apart,
    BaseForm,
    Choice,
)
from tuneline.artifacts.releases import ADAPTER_FILE, MODEL_FILE, Release
from tuneline.artifacts.training import ADAPTER, ADAPTER_GGUF, CANDIDATE_GGUF, MERGED
from tuneline.asking.rows import calibration_texts, dataset_rows
from tuneline.bases import base_of, fetch_form, keep_form, own_files
from tuneline.config import DeploymentConfig
from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import FileRef
from tuneline.machine.cores import available_cores, busy_cores, default_threads
from tuneline.models.base_model import BaseModel, digest_of, load_tokenizer
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import (
    Engine,
    ServedAdapter,
    ServedModel,
    hash_files,
    whole_digest,
)
from tuneline.serving.engines.server import EngineServer, ServeRequest
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
    """Keep a variant of the base in the store, and describe it and the adapter on it."""
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
    """Return the base and the adapter that were chosen; an error if one is another now."""
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
    """Fetch the base and the adapter of a release; an error if one is missing or changed."""
    refs = release.adapter_files()
    for name, ref in refs.items():
        ctx.note_input(f"released/{ref.name}", ref.uri, _fetch_once(release, ref, folder / name))
    adapter = hashed_adapter(folder / ADAPTER_FILE if ADAPTER_FILE in refs else folder)
    if adapter.sha256 != apart.adapter.sha256:
        raise CorruptObject(
            f"the adapter of {release.uri} has SHA-256 {adapter.sha256}, the manifest says "
            f"{apart.adapter.sha256}"
        )
    path = fetch_form(release.store, apart.base, ctx.log)
    _note_base(ctx, apart.base, path)
    return ServedModel(release.engine, path, apart.base.sha256, apart.base.files).beside(adapter)


def _fetch_once(release: Release, ref: FileRef, path: Path) -> Path:
    return path if path.exists() else release.fetch(ref, path)


def _note_base(ctx: StepContext, form: BaseForm, path: Path) -> None:
    """Note a base among the inputs; its files have been compared with their hashes."""
    where = form.uri if form.key is None else ctx.run.store.uri_of(form.key)
    for name, sha256 in form.files.items():
        file = path if path.is_file() else path / name
        ctx.inputs[f"base/{name}"] = FileRef(
            name=f"base/{name}", uri=f"{where}/{name}", sha256=sha256, bytes=file.stat().st_size
        )


# The model's name in the API of a server that a step starts.
ALIAS = "candidate"
# With fewer cores at work another thread gains more than it costs.
QUIET_CORES = 0.5


@dataclass(frozen=True)
class Candidate:
    """The model that ships if it passes, and the ids of the rows that its variant was chosen on."""

    model: ServedModel
    variant: str
    judged_on: frozenset[str]


def engine_of(ctx: StepContext) -> Engine:
    """Return the engine that ships; UserError if it can't be started here."""
    deployment = ctx.config.deployment
    return installed(deployment.engine).sized(deployment.parallel, deployment.context_tokens)


def installed(name: str) -> Engine:
    """Return an engine; UserError if it can't be started here."""
    engine = get_engine(name)
    lacking = engine.missing()
    if lacking is not None:
        raise UserError(
            f"the engine {name} can't be started here: {lacking}. Run the step in the image of "
            "that engine (pods.engine_image), or choose another deployment.engine"
        )
    return engine


def candidate(ctx: StepContext) -> Candidate:
    """Return the bytes that ship.

    TunelineError if `choice.json` names others, or the engine was built of others.
    """
    choice = CHOICE.read(ctx)
    engine = get_engine(choice.engine)
    model = _built(ctx, engine) if engine.form == "engine" else chosen_variant(ctx, choice)
    return Candidate(model, choice.variant, frozenset(choice.judged_on))


def chosen_variant(ctx: StepContext, choice: Choice) -> ServedModel:
    """Return the variant that was chosen; TunelineError if `choice.json` names another."""
    if choice.apart is not None:
        model = chosen_apart(ctx, choice, choice.apart)
    elif get_engine(choice.engine).form == "gguf":
        model = fetched(ctx, choice.engine, MODEL)
    else:
        # The unquantised checkpoint ships as it was exported; no copy of it is kept.
        form = MERGED if choice.variant == REFERENCE else CHECKPOINT
        model = fetched(ctx, choice.engine, form)
    if model.sha256 != choice.sha256:
        raise TunelineError(
            f"{model.path.name} has SHA-256 {model.sha256}, but choice.json chose "
            f"{choice.sha256}; run production_quantization again"
        )
    return model


def built_to_measure(ctx: StepContext, engine: Engine) -> Path:
    """Return the chosen variant as a compiled engine that gives its logits, built once in a step.

    The one that ships gives none, which would slow its prompts down; the weights are the same.
    """
    target, variant = ctx.scratch / "built_to_measure", CHOICE.read(ctx).variant
    if not target.exists():
        whole, texts = unquantised(ctx).path, calibration_of(ctx, variant)
        engine.make_variant(variant, whole, target, texts=texts, log=ctx.log)
    return target


def calibration_of(ctx: StepContext, variant: str) -> list[str]:
    """Return the texts that a variant is calibrated on, the same in every step."""
    if variant == REFERENCE:
        return []
    renderer = Renderer(load_tokenizer(MERGED.fetch(ctx)), ctx.config.data.target_format)
    return calibration_texts(dataset_rows(ctx), renderer)


def _built(ctx: StepContext, engine: Engine) -> ServedModel:
    """Return the compiled engine, compared with its identity."""
    if not ENGINE_IDENTITY.exists(ctx):
        raise UserError(
            f"the engine {engine.name} was not built: {ctx.entry(ENGINE_IDENTITY.step).summary}"
        )
    model = fetched(ctx, engine.name, ENGINE)
    files, stated = model.files, ENGINE_IDENTITY.read(ctx).files
    if dict(files) != stated:
        other = sorted(name for name in {*files, *stated} if files.get(name) != stated.get(name))
        raise TunelineError(
            f"the built engine differs from its identity.json in {', '.join(other)}; "
            "run build_engine again"
        )
    return model


def released_model(ctx: StepContext, release: Release) -> ServedModel:
    """Fetch the model that a release serves; its files are noted among the inputs.

    UserError if it has none, or a file is missing; CorruptObject if one has other bytes.
    """
    folder = ctx.scratch / "released" / release.version
    if release.apart is not None:
        return released_apart(ctx, release, release.apart, folder)
    refs = release.model_files()
    if not refs:
        raise UserError(
            f"{release.uri} states no model; set evaluation.against_released.enabled: false, or "
            "release a version that has one"
        )
    files = {name: ref.sha256 for name, ref in refs.items()}
    for name, ref in refs.items():
        ctx.note_input(f"released/{name}", ref.uri, _fetch_once(release, ref, folder / name))
    if MODEL.name in files:
        return ServedModel(release.engine, folder / MODEL.name, files[MODEL.name], files)
    return ServedModel(release.engine, folder, digest_of(files), files)


def hashed(engine: str, path: Path) -> ServedModel:
    """Return a model that lies here, with the hashes of its file or files."""
    return ServedModel(engine, path, *hash_files(path))


def fetched(ctx: StepContext, engine: str, artifact: Artifact | FolderArtifact) -> ServedModel:
    """Return a model that an earlier step left, with the hashes that it was fetched by."""
    path = artifact.fetch(ctx)
    files = ctx.fetched_hashes(path)
    return ServedModel(engine, path, whole_digest(path, files), files)


def unquantised(ctx: StepContext) -> ServedModel:
    """Return the exported model in the form that variants are made of."""
    engine = get_engine(ctx.config.deployment.engine)
    return fetched(ctx, engine.name, CANDIDATE_GGUF if engine.form == "gguf" else MERGED)


def untuned(ctx: StepContext, base: BaseModel | None = None) -> ServedModel:
    """Return the base model in the form of the engine that ships; note it among the inputs."""
    found = engine_of(ctx).untuned(base or base_of(ctx), ctx.log)
    if found.path.is_file():
        ctx.note_input(found.path.name, found.path.as_uri(), found.path)
    return found


def scoring_threads() -> int:
    """Return the threads for scoring: all cores of a quiet machine, else those of serving.

    `$TUNELINE_THREADS` decides if it is set.
    """
    if os.environ.get("TUNELINE_THREADS"):
        return default_threads()
    return available_cores() if busy_cores() < QUIET_CORES else default_threads()


def request_for(
    model: ServedModel,
    deployment: DeploymentConfig,
    *,
    alias: str = ALIAS,
    threads: int | None = None,
    parallel: int | None = None,
    port: int = 0,
) -> ServeRequest:
    """Return a request to serve a model with the limits of the deployment.

    With an adapter clients are answered with it. `threads` and `parallel` default to those of
    serving; port 0 takes a free one.
    """
    adapter = model.adapter
    return ServeRequest(
        model.path,
        alias,
        parallel or deployment.parallel,
        deployment.context_tokens,
        adapters={adapter.name: adapter.path} if adapter else {},
        answers_with=adapter.name if adapter else None,
        threads=threads,
        port=port,
    )


def server_of(model: ServedModel, deployment: DeploymentConfig, **options: Any) -> EngineServer:
    """Return a server of a model on its engine, which `with` starts; options of `request_for`."""
    return installed(model.engine).server(request_for(model, deployment, **options))
