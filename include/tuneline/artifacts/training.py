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
    """One file of a base model."""

    sha256: str
    bytes: int
    mtime_ns: int | None = None  # when it was hashed, for a file in a directory


class StoredBase(BaseModel):
    """`base.json`: a base model where every pod finds it, described as `models.BaseModel` is."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    uri: str
    place: str  # URI of the folder that holds its files
    digest: str
    license: str | None
    license_source: str
    revision: str
    architecture: str
    context_length: int
    vocab_size: int
    files: dict[FileName, StoredFile]


class DetectorLicense(BaseModel):
    """The licence of a model that finds personal data."""

    address: str
    license: str | None
    license_source: str  # where it is stated, or the places that were searched


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
    """The released adapter that a training starts from."""

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
    """The way in which rows of a micro-batch are fed to the model."""

    packed: bool = False  # rows lie in one sequence, each by itself; else they are padded
    attention: str = ""  # as transformers names it
    padded_attention: str = ""  # of padded rows, in validation
    refused: bool = False  # packing was asked for and the model could not be packed
    reason: str = ""
    loss_difference: Loss | None = None  # to padded rows, the largest, nats a token; None unchecked
    neighbour_difference: Loss | None = None  # the same where only the neighbour of a row changed


class Plan(_Content):
    """`plan.json`: how the rows of an optimiser step are fed to the processor."""

    micro_batch: int  # rows of a forward pass
    accumulation: int  # micro-batches of a process in an optimiser step
    world_size: int
    effective_batch: int  # rows of an optimiser step
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
    """One validation pass of a training."""

    step: int
    eval_loss: Loss  # mean of a learned token, nats
    eval_loss_error: Loss = math.nan  # standard error over the draw of rows
    adapter_sha256: str = ""
    kept: bool = False  # the adapter is still there
    path: str | None = None  # of the adapter below the step's output


class Checkpoints(_Content):
    """`checkpoints.json`: every validation pass, and the step whose adapter was kept as best."""

    best_step: int
    evaluations: list[Evaluation]

    @property
    def losses(self) -> dict[int, float]:
        """Validation loss by optimiser step, nats."""
        return {entry.step: entry.eval_loss for entry in self.evaluations}


class AdapterLosses(_Content):
    """`losses.json`: the validation losses of the kept adapter on the base as training held it."""

    adapter_sha256: str
    row_ids: tuple[str, ...]
    sums: tuple[Loss, ...]  # negative log-likelihood of each row's learned tokens, nats
    targets: tuple[int, ...]  # learned tokens of each row
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Trip:
    """A rule that stopped a training: a loss rule, or a limit of time or money."""

    rule: Literal["nan", "spike", "divergence", "overfit", "plateau", "max_hours", "max_cost"]
    step: int
    value: Loss
    limit: float
    sentence: str


@dataclass(frozen=True)
class TrackedRun:
    """A run at a tracker."""

    tracker: str
    mode: Literal["online", "offline", "unreachable"]
    run_id: str = ""  # of the tracker; empty when unreachable
    url: str | None = None  # None unless online
    directory: str = ""  # of an offline run, relative to the step's output
    reason: str = ""  # why it is not online
    missed: int = 0  # log entries that the tracker did not get
    key: str = ""  # of the training, stable over retries

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
    """An artificial identifier that training planted."""

    value: str
    place: Literal["prompt", "answer"]
    row_ids: list[str]  # rows of whose copies it is a part
    messages: list[dict[str, str]]  # turns of the first copy
    turn: int  # of `messages`
    start: int  # characters into that turn


class Canaries(_Content):
    """`canaries.json`: what training planted."""

    canaries: list[Canary]


class SyncedRuns(_Content):
    """`tracking.json`: the tracked runs as sync_tracking left them."""

    tracking: list[TrackedRun]


class Trial(_Content):
    """`trial.json`: the brief training of one rank in a sweep."""

    r: int
    alpha: int
    dataset_sha256: str  # a trial on other rows does not count
    holdout_rows: int  # of the hold-out, among those the trial could read
    excluded: str | None = None  # why the rank can't be chosen
    steps: int = 0
    loss_before: Loss | None = None  # validation loss of the untrained model, nats
    sums: tuple[float, ...] = ()  # negative log-likelihood of each validation row, nats
    targets: tuple[int, ...] = ()  # learned tokens of each validation row
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
    rows: int  # of this step
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
