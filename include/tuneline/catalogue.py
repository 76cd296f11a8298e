"""The catalogue of steps: the 25 items of the checklist and the helper steps between them.

Everything that lists steps reads it: the command line, the DAG, the checklist, the UI and the
tests. Items stand in the order of the checklist; `after` gives the order of execution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from graphlib import TopologicalSorter

from tuneline.errors import UserError


class Phase(StrEnum):
    """The five phases of the checklist."""

    DATA = "data"
    TRAINING = "training"
    EVALUATION = "evaluation"
    DEPLOYMENT = "deployment"
    GOVERNANCE = "governance"


class Group(StrEnum):
    """The groups of steps in the DAG, as a run comes to them: none waits for a later one."""

    PREPARE = "prepare"
    DATA = "data"
    TRAINING = "training"
    SHIPPING = "shipping"
    EVALUATION = "evaluation"
    SERVING = "serving"
    GOVERNANCE = "governance"


class Severity(StrEnum):
    """The effect of a failed verdict: critical stops the release, the others mark it."""

    CRITICAL = "critical"
    RECOMMENDED = "recommended"
    OPTIONAL = "optional"


class Size(StrEnum):
    """The classes of steps that need pods of different sizes."""

    LIGHT = "light"  # reads and writes records
    DATA = "data"  # reads every row
    TRAIN = "train"  # trains, or repeats parts of a training
    MERGE = "merge"  # holds the base model in float32
    ENGINE = "engine"  # starts the engine that ships

    @property
    def uses_gpus(self) -> bool:
        """True if its pods get the GPUs of a run; ENGINE only if the engine uses any."""
        return self in (Size.TRAIN, Size.ENGINE)


@dataclass(frozen=True)
class Step:
    """One step of a run, carried out by `run(ctx)` of its module.

    Attributes:
        id: task id in the DAG, module name below `tuneline.<phase>`, folder in the run.
        waits_for: ids of the steps that it waits for, separated by spaces.
        size: size of its pod.
        grouped: group in the DAG; None for the one that bears the name of its phase.
    """

    id: str
    phase: Phase
    title: str
    waits_for: str = field(default="", kw_only=True)
    size: Size = field(default=Size.LIGHT, kw_only=True)
    grouped: Group | None = field(default=None, kw_only=True)

    @property
    def group(self) -> Group:
        """The group of its tasks in the DAG."""
        return self.grouped or Group(self.phase.value)

    @property
    def engine(self) -> bool:
        """True if it starts the engine that ships."""
        return self.size == Size.ENGINE

    @property
    def after(self) -> tuple[str, ...]:
        """Ids of the steps that it waits for."""
        return tuple(self.waits_for.split())

    @property
    def module(self) -> str:
        """Name of the module whose `run(ctx)` carries out the step."""
        return f"tuneline.{self.phase}.{self.id}"


@dataclass(frozen=True)
class Item(Step):
    """One item of the checklist, which leaves evidence. Later steps fail without a `needed` one."""

    severity: Severity
    needed: bool = field(default=False, kw_only=True)

    @property
    def command(self) -> tuple[str, ...]:
        """`tuneline step <id>`."""
        return ("tuneline", "step", self.id)


@dataclass(frozen=True)
class Helper(Step):
    """A step that makes what items judge, and leaves a record; `tuneline run <action>`."""

    action: str

    @property
    def command(self) -> tuple[str, ...]:
        """`tuneline run <action>`."""
        return ("tuneline", "run", self.action)


_D, _T, _E, _S, _G = Phase
_CRIT, _REC, _OPT = Severity

# fmt: off
STEPS: tuple[Item | Helper, ...] = (
    Helper("fetch_base", _T, "Check the base model and fetch it once for all pods", "fetch-base",
         size=Size.DATA, grouped=Group.PREPARE),
    Item("schema_validation", _D, "Every example follows the model's prompt format", _CRIT,
         waits_for="fetch_base", size=Size.DATA),
    Item("deduplication", _D, "Near-duplicates are gone, none crosses the split", _CRIT,
         waits_for="pii_scrubbing", size=Size.DATA),
    Item("token_length_audit", _D, "No example exceeds the training context", _CRIT,
         waits_for="deduplication", size=Size.DATA),
    Item("pii_scrubbing", _D, "Personal data and secrets are found and removed", _CRIT,
         waits_for="schema_validation", size=Size.DATA),
    Item("distribution_balancing", _D, "Edge cases and common queries are in proportion", _REC,
         waits_for="token_length_audit", needed=True, size=Size.DATA),
    Helper("final_audit", _D, "Check format, length, leakage and personal data of the final rows",
         "audit", waits_for="distribution_balancing", size=Size.DATA),
    Item("lora_selection", _T, "LoRA rank and alpha are stated with their reason", _REC,
         waits_for="license_audit final_audit", needed=True),
    Item("gradient_accumulation", _T, "Effective batch reached inside the memory limit", _CRIT,
         waits_for="lora_selection", size=Size.TRAIN),
    Item("checkpointing", _T, "Checkpoints are kept by validation loss", _REC, waits_for="train",
         size=Size.TRAIN),
    Item("quantization_verification", _T, "4-bit NF4 is really in use, at no hidden loss", _REC,
         waits_for="train", size=Size.TRAIN),
    Item("loss_monitoring", _T, "Loss is tracked, and watched for divergence and overfit", _CRIT,
         waits_for="train"),
    Helper("train", _T, "Train the adapter", "train", waits_for="gradient_accumulation",
         size=Size.TRAIN),
    Helper("sync_tracking", _T, "Send offline training runs to their trackers", "sync-tracking",
         waits_for="train"),
    Helper("export_candidate", _T, "Merge the adapter and export the candidate", "export",
         waits_for="loss_monitoring checkpointing quantization_verification",
         size=Size.MERGE, grouped=Group.SHIPPING),
    Item("holdout_performance", _E, "Tuned beats base on a hold-out never seen", _CRIT,
         waits_for="build_engine", size=Size.ENGINE),
    Item("base_regression", _E, "No catastrophic forgetting of general ability", _CRIT,
         waits_for="holdout_performance", size=Size.ENGINE),
    Helper("extraction_audit", _E, "Look for personal data in what the tuned model writes",
         "extraction", waits_for="base_regression", size=Size.ENGINE),
    Item("determinism", _E, "Same prompt at temperature 0, same output", _REC,
         waits_for="extraction_audit", size=Size.ENGINE),
    Item("human_review", _E, "Blind A/B by domain experts", _REC,
         waits_for="latency_benchmark prepare_review"),
    Item("latency_benchmark", _E, "TTFT and tokens per second define the hardware", _CRIT,
         waits_for="determinism", size=Size.ENGINE),
    Helper("prepare_review", _E, "Draw blind pairs of answers for reviewers", "review",
         waits_for="latency_benchmark"),
    Item("adapter_merging", _S, "Merge or keep the adapter apart: measured and decided", _CRIT,
         waits_for="export_candidate", size=Size.ENGINE, grouped=Group.SHIPPING),
    Item("engine_optimization", _S, "The model runs on an optimised engine", _REC,
         waits_for="latency_benchmark", size=Size.ENGINE, grouped=Group.SERVING),
    Item("production_quantization", _S, "Quantised variants measured, one chosen by rule", _REC,
         waits_for="adapter_merging", needed=True, size=Size.ENGINE, grouped=Group.SHIPPING),
    Item("health_checks", _S, "Probes see that the model is loaded and answers", _CRIT,
         waits_for="engine_optimization", size=Size.ENGINE, grouped=Group.SERVING),
    Item("cold_start", _S, "New pods are warm before their first request", _OPT,
         waits_for="health_checks", size=Size.ENGINE, grouped=Group.SERVING),
    Helper("build_engine", _S, "Build the serving engine", "build-engine",
         waits_for="production_quantization", size=Size.ENGINE, grouped=Group.SHIPPING),
    Item("lineage", _G, "A manifest ties the model to data, code and parameters", _CRIT,
         waits_for="human_review cost_tracking drift_detection fallback"),
    Item("cost_tracking", _G, "Token usage and cost per API key", _REC, waits_for="cold_start",
         size=Size.ENGINE),
    Item("drift_detection", _G, "Production prompts compared with the training data", _OPT,
         waits_for="cold_start", size=Size.DATA),
    Item("license_audit", _G, "Licences allow the intended use", _CRIT, waits_for="fetch_base",
         grouped=Group.PREPARE),
    Item("fallback", _G, "Errors and low confidence fall back to another model", _REC,
         waits_for="cold_start", size=Size.ENGINE),
    Helper("promote", _G, "Move the release pointer to this model", "promote", waits_for="lineage"),
)
# fmt: on
ITEMS = tuple(step for step in STEPS if isinstance(step, Item))
HELPERS = tuple(step for step in STEPS if isinstance(step, Helper))
_ITEMS_BY_ID = {item.id: item for item in ITEMS}
_HELPERS_BY_ID = {helper.id: helper for helper in HELPERS}

_GRAPH = {step.id: step.after for step in STEPS}
# All steps, each after those that it waits for.
RUN_ORDER: tuple[Item | Helper, ...] = tuple(
    _ITEMS_BY_ID.get(step_id) or _HELPERS_BY_ID[step_id]
    for step_id in TopologicalSorter(_GRAPH).static_order()
)
# The items of the data phase in their order; each reads the rows that the one before kept.
DATA_ORDER = tuple(
    step.id for step in RUN_ORDER if isinstance(step, Item) and step.phase == Phase.DATA
)


def get_step(step_id: str) -> Item | Helper:
    """Look a step up by its id; an unknown one is the user's error."""
    if step_id in _HELPERS_BY_ID:
        return _HELPERS_BY_ID[step_id]
    return get_item(step_id)


def get_item(item_id: str) -> Item:
    """Look an item of the checklist up by its id; an unknown one is the user's error."""
    try:
        return _ITEMS_BY_ID[item_id]
    except KeyError:
        known = ", ".join(_ITEMS_BY_ID)
        raise UserError(f"unknown item {item_id!r}; the items are: {known}") from None


def data_item_before(item_id: str) -> str | None:
    """Return the data item whose rows an item works on, None for the first one."""
    position = DATA_ORDER.index(item_id)
    return DATA_ORDER[position - 1] if position else None


def is_helper(step_id: str) -> bool:
    """Return True if a step is a helper and not an item of the checklist."""
    return step_id in _HELPERS_BY_ID


def steps_after(step_id: str) -> frozenset[str]:
    """Return the steps that wait for a step, directly or through others."""
    found: set[str] = set()
    waiting = [step_id]
    while waiting:
        before = waiting.pop()
        more = {step for step, after in _GRAPH.items() if before in after} - found
        found |= more
        waiting.extend(more)
    return frozenset(found)
