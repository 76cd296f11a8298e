"""The catalogue: the 25 checklist items, in the order of the checklist.

The id of an item is its task id in the DAG, its module name under
``tuneline.<phase>`` and the key of its evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuneline.errors import UserError


class Phase(StrEnum):
    """The five phases of the checklist."""

    DATA = "data"
    TRAINING = "training"
    EVALUATION = "evaluation"
    DEPLOYMENT = "deployment"
    GOVERNANCE = "governance"


class Severity(StrEnum):
    """What a failed verdict does: critical stops the release, the others mark it."""

    CRITICAL = "critical"
    RECOMMENDED = "recommended"
    OPTIONAL = "optional"


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    id: str
    phase: Phase
    severity: Severity
    title: str

    @property
    def module(self) -> str:
        """The module whose ``run(ctx)`` carries the item out."""
        return f"tuneline.{self.phase}.{self.id}"


_D, _T, _E, _S, _G = Phase
_CRIT, _REC, _OPT = Severity

ITEMS: tuple[Item, ...] = (
    Item("schema_validation", _D, _CRIT, "Every example follows the model's prompt format"),
    Item("deduplication", _D, _CRIT, "Near-duplicates are gone, none crosses the split"),
    Item("token_length_audit", _D, _CRIT, "No example exceeds the training context"),
    Item("pii_scrubbing", _D, _CRIT, "Personal data and secrets are found and removed"),
    Item("distribution_balancing", _D, _REC, "Edge cases and common queries are in proportion"),
    Item("lora_selection", _T, _REC, "LoRA rank and alpha are chosen and documented"),
    Item("gradient_accumulation", _T, _CRIT, "Effective batch reached inside the memory limit"),
    Item("checkpointing", _T, _REC, "Checkpoints are kept by validation loss"),
    Item("quantization_verification", _T, _REC, "4-bit NF4 is really in use, at no hidden loss"),
    Item("loss_monitoring", _T, _CRIT, "Loss is tracked live, divergence and overfit caught"),
    Item("holdout_performance", _E, _CRIT, "Tuned beats base on a hold-out never seen"),
    Item("base_regression", _E, _CRIT, "General ability is not forgotten"),
    Item("determinism", _E, _REC, "Same prompt at temperature 0, same output"),
    Item("human_review", _E, _REC, "Blind A/B by domain experts"),
    Item("latency_benchmark", _E, _CRIT, "TTFT and tokens per second define the hardware"),
    Item("adapter_merging", _S, _CRIT, "Merge or keep the adapter apart: measured and decided"),
    Item("engine_optimization", _S, _REC, "The model runs on an optimised engine"),
    Item("production_quantization", _S, _REC, "Quantised variants measured, one chosen by rule"),
    Item("health_checks", _S, _CRIT, "Probes see that the model is loaded and answers"),
    Item("cold_start", _S, _OPT, "New pods are warm before their first request"),
    Item("lineage", _G, _CRIT, "A manifest ties the model to data, code and parameters"),
    Item("cost_tracking", _G, _REC, "Token usage and cost per API key"),
    Item("drift_detection", _G, _OPT, "Production prompts compared with the training data"),
    Item("license_audit", _G, _CRIT, "Licences allow the intended use"),
    Item("fallback", _G, _REC, "Errors and low confidence fall back to another model"),
)

_BY_ID = {item.id: item for item in ITEMS}


def get_item(item_id: str) -> Item:
    """Look an item up by its id.

    Raises:
        UserError: there is no such item.
    """
    try:
        return _BY_ID[item_id]
    except KeyError:
        known = ", ".join(_BY_ID)
        raise UserError(f"unknown item {item_id!r}; the items are: {known}") from None
