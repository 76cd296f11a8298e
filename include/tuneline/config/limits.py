"""The settings that are limits of items, which way is stricter, and those that are no limits.

A policy (`tuneline.config.policy`) states how loose each limit may be. Every number of the
configuration stands in one of the two tables below; a test compares them with the settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from tuneline.config.data import OTHER_LEAKS, USUAL_LEAKS

Value = float | bool | str | None
# In a map of limits: whatever the map does not name.
OTHER = "other"


@dataclass(frozen=True)
class Limit:
    """A setting that is a limit.

    Attributes:
        setting: its path in the configuration; a map has one limit for each of its keys.
        item: the item whose verdict it decides; empty for a map whose keys are the items.
        stricter: the direction in which it becomes stricter.
        unset: the value that it stands for while it is null.
        levels: its values from the loosest to the strictest, where they are not numbers.
    """

    setting: str
    item: str
    stricter: Literal["lower", "higher"]
    unset: float | None = None
    levels: tuple[bool | str, ...] = ()

    def rank(self, value: Value) -> float:
        """Return a number that grows as a value becomes looser."""
        if self.levels:
            return -self.levels.index(value)
        assert isinstance(value, int | float)
        number = float(value)
        return number if self.stricter == "lower" else -number

    def fits(self, value: object) -> bool:
        """Return True if a policy may state the value."""
        if value is None:
            return True
        if self.levels:
            return value in self.levels
        return isinstance(value, int | float) and not isinstance(value, bool)


def _limits(
    item: str, stricter: Literal["lower", "higher"], *settings: str, unset: float | None = None
) -> list[Limit]:
    return [Limit(setting, item, stricter, unset) for setting in settings]


_BREACH = ("warn", "fail")

LIMITS: tuple[Limit, ...] = (
    *_limits("schema_validation", "lower", "data.max_rejected_share"),
    *_limits("deduplication", "lower", "data.near_duplicate_jaccard"),
    *_limits("token_length_audit", "lower", "data.max_too_long_share"),
    *_limits(
        "pii_scrubbing",
        "lower",
        "data.pii_max_leak",
        "data.pii_max_leak_ner",
        "data.pii_recognizer_score",
        "data.max_undeclared_language_share",
        "evaluation.extraction.max_written_out",
        "evaluation.extraction.max_preferred",
        "evaluation.extraction.max_exposed_canaries",
    ),
    *_limits("pii_scrubbing", "higher", "evaluation.extraction.identifiers"),
    Limit("data.pii_leak_breach", "pii_scrubbing", "higher", levels=_BREACH),
    Limit("data.undeclared_language_breach", "pii_scrubbing", "higher", levels=_BREACH),
    *_limits("distribution_balancing", "lower", "data.max_class_ratio", "data.max_upsampling"),
    *_limits(
        "",
        "lower",
        "data.removed_share_warn",
        "data.removed_share_fail",
        "data.class_removed_share_warn",
        "data.class_removed_share_fail",
    ),
    *_limits(
        "loss_monitoring",
        "lower",
        "training.spike_factor",
        "training.spike_streak",
        "training.divergence_share",
        "training.overfit_ratio",
    ),
    *_limits("quantization_verification", "lower", "training.max_perplexity_ratio"),
    *_limits(
        "holdout_performance",
        "higher",
        "evaluation.min_gain",
        "evaluation.min_gain_over_trivial",
        "evaluation.fair_base_shots",
    ),
    *_limits("holdout_performance", "higher", "evaluation.min_metric", unset=0.0),
    *_limits(
        "holdout_performance",
        "lower",
        "evaluation.numeric_tolerance",
        "evaluation.against_released.margin",
        "evaluation.slices.worse_by",
        "evaluation.slices.min_rows",
        "evaluation.paraphrases.max_excess",
    ),
    Limit(
        "evaluation.against_released.enabled",
        "holdout_performance",
        "higher",
        levels=(False, True),
    ),
    Limit("evaluation.slices.on_worse", "holdout_performance", "higher", levels=_BREACH),
    Limit("evaluation.paraphrases.on_excess", "holdout_performance", "higher", levels=_BREACH),
    *_limits("base_regression", "lower", "evaluation.max_regression", unset=0.03),
    *_limits("base_regression", "lower", "evaluation.max_perplexity_ratio", unset=1.5),
    *_limits(
        "base_regression",
        "lower",
        "evaluation.max_category_regression",
        "evaluation.regression_to_see",
    ),
    *_limits(
        "determinism",
        "higher",
        "evaluation.min_identical_share",
        "evaluation.identical_share_to_show",
    ),
    *_limits(
        "latency_benchmark", "lower", "evaluation.max_ttft_seconds", "evaluation.max_tpot_seconds"
    ),
    *_limits(
        "latency_benchmark", "higher", "evaluation.objective_share", "evaluation.load.headroom"
    ),
    *_limits("human_review", "lower", "evaluation.review_alpha"),
    *_limits("adapter_merging", "lower", "deployment.max_merge_loss"),
    *_limits("production_quantization", "lower", "deployment.max_metric_drop", "deployment.max_kl"),
)

# Numbers that no policy bounds, by the reason.
EXEMPT: Mapping[str, tuple[str, ...]] = {
    "a size of samples, which decides how much an item can show": (
        "data.pii_canaries",
        "data.max_holdout_rows",
        "data.holdout_share",
        "data.validation_share",
        "evaluation.fair_base_rows",
        "evaluation.regression_questions",
        "evaluation.regression_first_look",
        "evaluation.regression_texts",
        "evaluation.determinism_prompts",
        "evaluation.determinism_repeats",
        "evaluation.determinism_tokens",
        "evaluation.latency_requests",
        "evaluation.latency_warmup",
        "evaluation.load.seconds",
        "evaluation.review_pairs",
        "deployment.quality_rows",
        "governance.fallback.calibration_rows",
    ),
    "it chooses rows; the rows that stay are measured by limits of their own": (
        "data.template_repeats",
        "data.repeated_phrase_share",
        "data.max_tokens",
        "data.max_train_rows",
        "data.csv.max_per_label",
    ),
    "what it describes lies with the dataset: its classes and their shares": (
        "data.min_rows_per_class",
        "data.edge_case_share",
        "data.reference_shares",
    ),
    "it says how training is done; what comes of it is measured": (
        "training.r",
        "training.alpha",
        "training.dropout",
        "training.sweep_r",
        "training.sweep_share",
        "training.sweep_steps",
        "training.epochs",
        "training.max_steps",
        "training.learning_rate",
        "training.warmup_share",
        "training.effective_batch",
        "training.rehearsal_rows",
        "training.rehearsal_weight",
        "training.canaries",
        "training.canary_repeats",
        "training.micro_batch",
        "training.evaluations",
        "training.plateau_evaluations",
        "training.plateau_nats",
        "training.seed",
    ),
    "a resource: time, money, memory, processes": (
        "training.max_hours",
        "training.max_cost",
        "training.device_cost_per_hour",
        "training.memory_limit_gib",
        "training.keep_checkpoints",
        "training.checkpoint_minutes",
        "training.threads",
        "training.processes",
        "pods.gpus",
        "pods.nodes",
        "pods.user",
        "pods.deadline_hours",
        "governance.machine_cost_per_hour",
        "governance.lock_days",
    ),
    "it describes the service that the evidence then claims; the manifest states it": (
        "evaluation.max_new_tokens",
        "evaluation.concurrency",
        "evaluation.load.requests_per_s",
        "evaluation.load.users",
        "evaluation.load.requests_per_user_per_minute",
        "evaluation.load.replicas",
        "deployment.parallel",
        "deployment.context_tokens",
        "deployment.max_lora_rank",
        "deployment.max_adapter_slowdown",
        "governance.monthly_users",
        "governance.fallback.budget_s",
        "governance.fallback.answer_timeout_s",
        "governance.fallback.first_token_timeout_s",
        "governance.fallback.stream_window_tokens",
        "governance.fallback.larger.context_tokens",
        "governance.fallback.larger.per_1k_prompt",
        "governance.fallback.larger.per_1k_completion",
    ),
    "it says how the release is tried after the gate, by a rule with error rates of its own": (
        "governance.canary.share",
        "governance.canary.hours",
        "governance.canary.begin_hours",
    ),
    "it says how people are asked": (
        "data.pii_review_rows",
        "data.pii_review_hours",
        "evaluation.review_hours",
        "evaluation.reviewers_per_pair",
        "evaluation.review_pairs_per_task",
    ),
    "a rate of alarms in service; too high is as bad as too low": (
        "governance.min_confidence",
        "governance.drift_p_value",
        "governance.fallback.caught_share",
        "governance.fallback.false_alarm_share",
    ),
}

_BY_SETTING = {limit.setting: limit for limit in LIMITS}


def limit_of(path: str) -> Limit | None:
    """Return the limit of a path, which may be a key of a map of limits; None if there is none."""
    return _BY_SETTING.get(path) or _BY_SETTING.get(path.rpartition(".")[0])


def item_of(path: str) -> str:
    """Return the item that a limit belongs to.

    Raises:
        KeyError: if the path is no limit.
    """
    limit = limit_of(path)
    if limit is None:
        raise KeyError(path)
    return limit.item or path.rpartition(".")[2]


def near_limit(path: str) -> str:
    """Return the question whether a limit of a similar name was meant; empty without one."""
    near = difflib.get_close_matches(path, [one.setting for one in LIMITS], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_limit(path: str, item: str) -> None:
    """Refuse a path that is not a limit of an item.

    Raises:
        ValueError: if it is not.
    """
    limit = limit_of(path)
    if limit is None:
        hint = near_limit(path) or "; docs/governance.md lists the limits"
        raise ValueError(f"{path!r} is not a limit{hint}")
    if not limit.item and path == limit.setting:
        raise ValueError(f"{path} has a limit for each item; name {path}.{item}")
    if item_of(path) != item:
        raise ValueError(f"{path} is a limit of {item_of(path)}, not of {item}")


def limits_in(config: BaseModel) -> dict[str, Value]:
    """Return the value of each limit in a configuration, by its path."""
    found: dict[str, Value] = {}
    for limit in LIMITS:
        value: Any = config
        for part in limit.setting.split("."):
            value = getattr(value, part)
        if limit.setting == "data.pii_max_leak":
            value = _leaks(value)
        elif value is None:
            value = limit.unset
        found |= dict(leaves(value, limit.setting))
    return found


def _leaks(value: float | Mapping[str, float]) -> Mapping[str, float]:
    """Return the limits on leaks by entity, those included that the setting does not name."""
    if not isinstance(value, Mapping):
        return {OTHER: value}
    # docs/data.md: a map that does not name an entity keeps its default.
    return {OTHER: OTHER_LEAKS, **USUAL_LEAKS, **value}


def leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested maps by their paths."""
    if not isinstance(content, Mapping):
        yield path, content
        return
    for name, value in content.items():
        yield from leaves(value, f"{path}.{name}" if path else str(name))
