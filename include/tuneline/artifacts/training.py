"""Files that the training phase leaves for other steps, with their models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from tuneline.artifacts.artifact import Artifact, Document, FileName, FolderArtifact

if TYPE_CHECKING:
    from tuneline.run import Run
    from tuneline.step_context import StepContext


class StoredFile(BaseModel):
    """One file of a base model.

    Attributes:
        sha256: hash of its bytes.
        bytes: its size, bytes.
        mtime_ns: its time of modification when it was hashed, for a file in a directory.
    """

    sha256: str
    bytes: int
    mtime_ns: int | None = None


class StoredBase(BaseModel):
    """`base.json`: a base model where every pod finds it, described as `models.BaseModel` is.

    Attributes:
        place: URI of the folder that holds its files.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    uri: str
    place: str
    digest: str
    license: str | None
    license_source: str
    revision: str
    architecture: str
    context_length: int
    vocab_size: int
    files: dict[FileName, StoredFile]


class DetectorLicense(BaseModel):
    """The licence of a model that finds personal data.

    Attributes:
        address: where the model comes from.
        license: SPDX identifier, None if none is stated.
        license_source: where it is stated, or the places that were searched.
    """

    address: str
    license: str | None
    license_source: str


class Detectors(BaseModel):
    """`detectors.json`: the models that find personal data in the rows of a run."""

    models: list[DetectorLicense] = []


BASE = Document("fetch_base", "base.json", StoredBase)
DETECTORS = Document("fetch_base", "detectors.json", Detectors)


def finite_or_text(value: float) -> int | float | str:
    """Return a number that JSON can hold; NaN and infinity become text that `float` reads."""
    return value if math.isfinite(value) else str(value)


# A loss may be NaN, which JSON has no number for.
Loss = Annotated[float, PlainSerializer(finite_or_text, return_type=int | float | str)]


class _Content(BaseModel):
    """The content of a document. Fields of other versions are ignored, so that they are read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StartedFrom(_Content):
    """The released adapter that a training starts from.

    Attributes:
        manifest: URI of its manifest.
        uri: URI of the adapter's weights.
        sha256: hash of the adapter's weights.
        bytes: size of the adapter's weights.
    """

    version: str
    manifest: str
    uri: str
    sha256: str
    bytes: int


class LoraSettings(_Content):
    """`lora.json`: the adapter that lora_selection chose; `started_from` is None for a new one."""

    r: int
    alpha: int
    dropout: float
    target_modules: list[str]
    rslora: bool
    dora: bool
    trainable_parameters: int = 0
    total_parameters: int = 0
    reason: str = ""
    started_from: StartedFrom | None = None


class Packing(_Content):
    """The way in which rows of a micro-batch are fed to the model.

    Attributes:
        packed: True if they lie in one sequence, each by itself; else they are padded.
        attention: implementation of attention in training, as transformers names it.
        padded_attention: the one that padded rows get, in validation.
        refused: True if packing was asked for and the model could not be packed.
        reason: why rows are padded; empty if they are packed.
        loss_difference: largest difference to padded rows that the check at the start found,
            nats a token; None without a check.
        neighbour_difference: the same where only the neighbour of a row changed.
    """

    packed: bool = False
    attention: str = ""
    padded_attention: str = ""
    refused: bool = False
    reason: str = ""
    loss_difference: Loss | None = None
    neighbour_difference: Loss | None = None


class Plan(_Content):
    """`plan.json`: how the rows of an optimiser step are fed to the processor.

    Attributes:
        micro_batch: rows of a forward pass.
        accumulation: micro-batches of a process in an optimiser step.
        effective_batch: rows of an optimiser step.
        threads: CPU threads of a process.
        packing: how rows are fed to the model.
        estimate: time and money that training will take.
        planned_micro_batch: the micro-batch of the file where training took a smaller one
            because memory ran out; it is not in the file.
    """

    micro_batch: int
    accumulation: int
    world_size: int
    effective_batch: int
    threads: int
    device: str
    precision: Literal["fp32", "bf16"]
    estimate: dict[str, Any]
    planned_micro_batch: int | None = Field(None, exclude=True)
    packing: Packing = Packing()
    # How the plan was found. Training does not read it.
    max_length: int = 0
    longest_row: int = 0
    gradient_checkpointing: bool = False
    memory_limit_bytes: int = 0
    memory_limit_source: str = ""
    predicted_peak_bytes: int = 0
    measured_peak_bytes: int = 0
    measured_step_bytes: int = 0
    predicted_parts: dict[str, int] = {}
    tokens_per_second: float = 0.0
    tried: list[dict[str, Any]] = []


class Evaluation(_Content):
    """One validation pass of a training.

    Attributes:
        eval_loss: mean loss of a learned token, nats.
        eval_loss_error: its standard error over the draw of rows.
        adapter_sha256: hash of the adapter's weights at that step.
        kept: True if the adapter is still there.
        path: folder of the adapter below the step's output; None if it was not kept.
    """

    step: int
    eval_loss: Loss
    eval_loss_error: Loss = math.nan
    adapter_sha256: str = ""
    kept: bool = False
    path: str | None = None


class Checkpoints(_Content):
    """`checkpoints.json`: every validation pass, and the step whose adapter was kept as best."""

    best_step: int
    evaluations: list[Evaluation]

    @property
    def losses(self) -> dict[int, float]:
        """Validation loss by optimiser step, nats."""
        return {entry.step: entry.eval_loss for entry in self.evaluations}


class AdapterLosses(_Content):
    """`losses.json`: the validation losses of the kept adapter on the base as training held it.

    Attributes:
        adapter_sha256: hash of the adapter's weights.
        row_ids: ids of the validation rows.
        sums: negative log-likelihood of each row's learned tokens, nats.
        targets: learned tokens of each row.
        weights: weight of each row.
    """

    adapter_sha256: str
    row_ids: tuple[str, ...]
    sums: tuple[Loss, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Trip:
    """A rule that stopped a training: a loss rule, or a limit of time or money.

    Attributes:
        step: optimiser step at which it tripped.
        limit: the limit of that value.
        sentence: the reason, for a person.
    """

    rule: Literal["nan", "spike", "divergence", "overfit", "plateau", "max_hours", "max_cost"]
    step: int
    value: Loss
    limit: float
    sentence: str


@dataclass(frozen=True)
class TrackedRun:
    """A run at a tracker.

    Attributes:
        mode: online (a server took the metrics as they came), offline (they lie in a file of
            the tracker) or unreachable (nothing was tracked).
        run_id: the tracker's id of the run; empty when unreachable.
        url: page on which the run can be watched; None unless online.
        directory: folder of an offline run, relative to the step's output; else empty.
        reason: why the run is not online; else empty.
        missed: log entries that the tracker did not get.
        key: of the training, stable over retries.
    """

    tracker: str
    mode: Literal["online", "offline", "unreachable"]
    run_id: str = ""
    url: str | None = None
    directory: str = ""
    reason: str = ""
    missed: int = 0
    key: str = ""

    @property
    def title(self) -> str:
        """The tracker's name as people write it."""
        return {"mlflow": "MLflow", "wandb": "Weights & Biases"}[self.tracker]

    @property
    def can_be_synced(self) -> bool:
        """True if a part of the run could still be sent to a server."""
        held = self.mode == "offline" and bool(self.directory)
        return held or self.mode == "unreachable" or self.missed > 0


class TrainedRun(_Content):
    """`run.json` of training: its course, its settings and its tracked runs."""

    steps: int
    steps_planned: int = 0
    resumed_from: int | None = None
    started_from: StartedFrom | None = None
    stopped: Trip | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    saving_seconds: float = 0.0
    tokens: int = 0
    tokens_per_second: float = 0.0
    peak_memory_bytes: int = 0
    epochs_seen: float = 0.0
    precision: str = ""
    device: str = ""
    threads: int = 0
    seed: int = 0
    world_size: int = 1
    nodes: int = 1
    backend: str | None = None
    sharding: str = "none"
    packing: Packing = Packing()
    batches: dict[str, float] = {}
    resources: dict[str, Any] = {}
    tracking: list[TrackedRun] = []
    tracking_seconds: float = 0.0
    hyperparameters: dict[str, Any] = {}


class Canary(_Content):
    """An artificial identifier that training planted.

    Attributes:
        place: whether it stands in the question or in the answer.
        row_ids: training rows of whose copies it is a part.
        messages: turns of the first copy.
        turn: turn that holds it there.
        start: its place in that turn, in characters.
    """

    value: str
    place: Literal["prompt", "answer"]
    row_ids: list[str]
    messages: list[dict[str, str]]
    turn: int
    start: int


class Canaries(_Content):
    """`canaries.json`: what training planted."""

    canaries: list[Canary]


class SyncedRuns(_Content):
    """`tracking.json`: the tracked runs as sync_tracking left them."""

    tracking: list[TrackedRun]


class Trial(_Content):
    """`trial.json`: the brief training of one rank in a sweep.

    Attributes:
        dataset_sha256: hash of the run's dataset; a trial on other rows does not count.
        holdout_rows: rows of the hold-out among those the trial could read.
        excluded: why the rank can't be chosen; None if it can.
        loss_before: validation loss of the untrained model, nats.
        sums: negative log-likelihood of each validation row's learned tokens, nats.
        targets: learned tokens of each validation row.
        weights: weight of each validation row.
        seconds: time of its steps and its measurement.
    """

    r: int
    alpha: int
    dataset_sha256: str
    holdout_rows: int
    excluded: str | None = None
    steps: int = 0
    loss_before: Loss | None = None
    sums: tuple[float, ...] = ()
    targets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    trainable_share: float = 0.0
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """True if the rank can be chosen."""
        return self.excluded is None


def trial_key(run: Run, r: int) -> str:
    """Return the key of a rank's `trial.json` in the store of a run."""
    return run.key("work", "sweep", "runs", f"r{r}", "trial.json")


class HistoryEntry(TypedDict, total=False):
    """One logged step or validation pass; a loss that is not finite is text that `float` reads."""

    step: int
    loss: float | str
    task_loss: float | str
    eval_loss: float | str
    eval_loss_error: float | str
    eval_seconds: float
    learning_rate: float
    grad_norm: float | str
    tokens: int
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class HistoryArtifact(Artifact):
    """The losses of a training, step by step: one JSON object a line."""

    def read(self, ctx: StepContext) -> list[HistoryEntry]:
        """Read the history of an earlier step; see `Artifact.fetch`."""
        return read_history(self.fetch(ctx))

    def write(self, ctx: StepContext, history: Sequence[HistoryEntry]) -> None:
        """Write the history of this step."""
        lines = (json.dumps(entry, allow_nan=False) + "\n" for entry in history)
        self.path(ctx).write_text("".join(lines), encoding="utf-8")


def read_history(path: Path) -> list[HistoryEntry]:
    """Read a file of a `HistoryArtifact`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LORA = Document("lora_selection", "lora.json", LoraSettings)
PLAN = Document("gradient_accumulation", "plan.json", Plan)
HISTORY = HistoryArtifact("train", "history.jsonl")
TRAINED = Document("train", "run.json", TrainedRun)
CHECKPOINTS = Document("train", "checkpoints.json", Checkpoints)
CANARIES = Document("train", "canaries.json", Canaries)
ADAPTER = FolderArtifact("train", "adapter")
ADAPTER_LOSSES = Document("checkpointing", "losses.json", AdapterLosses)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SYNCED = Document("sync_tracking", "tracking.json", SyncedRuns)
MERGED = FolderArtifact("export_candidate", "merged")
CANDIDATE_GGUF = Artifact("export_candidate", "candidate.gguf")
ADAPTER_GGUF = Artifact("export_candidate", "adapter.gguf")


def latest_runs(run: Run) -> list[TrackedRun]:
    """Return the tracked runs of a run's training as they are now, sync_tracking included.

    It reads two small files of the store, so that an Airflow worker can ask before it starts a
    pod.
    """
    trained, synced = TRAINED.find(run), SYNCED.find(run)
    if trained is None:
        return []
    done = {(entry.tracker, entry.key): entry for entry in (synced.tracking if synced else [])}
    return [done.get((entry.tracker, entry.key), entry) for entry in trained.tracking]


def unsynced(run: Run) -> list[TrackedRun]:
    """Return the tracked runs of which a part could still be sent to a server."""
    return [tracked for tracked in latest_runs(run) if tracked.can_be_synced]
