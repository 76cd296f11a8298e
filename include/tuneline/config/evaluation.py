"""The evaluation section: metrics, limits and the review of the candidate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneline.config.section import Section


class AgainstReleasedConfig(Section):
    """The comparison with the released model, on the hold-out rows of the run."""

    enabled: bool = Field(
        True, description="Compare with the released model, if there is one under the same name."
    )
    margin: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="Share of the hold-out rows by which the candidate may be worse than the "
        "released model; the lower end of the difference must not lie below it.",
    )


class EvaluationConfig(Section):
    """Metrics, limits and the review of the candidate."""

    metric: Literal["auto", "json_field", "exact"] = Field(
        "auto", description="Task metric; auto compares the label field of a JSON answer."
    )
    max_new_tokens: int = Field(48, ge=1, description="Limit of an answer, in tokens.")
    min_gain: float = Field(
        0.0, ge=-1, le=1, description="The lower end of the gain over the base must exceed it."
    )
    against_released: AgainstReleasedConfig = AgainstReleasedConfig()
    max_regression: float | None = Field(
        None, gt=0, le=1, description="Allowed drop on general questions; None takes 2 × noise."
    )
    regression_questions: int | None = Field(
        None, ge=20, description="Number of general questions; None asks all."
    )
    determinism_prompts: int = Field(4, ge=1, description="Prompts that are repeated.")
    determinism_repeats: int = Field(3, ge=2, description="Repeats of each prompt.")
    min_identical_share: float = Field(
        1.0, ge=0, le=1, description="Share of repeats with the same parsed answer."
    )
    concurrency: list[int] = Field(
        [1, 2, 4, 8],
        min_length=4,
        description="Requests under way at once in each level of the latency benchmark.",
    )
    latency_requests: int = Field(8, ge=1, description="Requests at each level.")
    max_ttft_seconds: float = Field(2.0, gt=0, description="Objective: time to first token.")
    max_tpot_seconds: float = Field(0.2, gt=0, description="Objective: time per output token.")
    review: bool = Field(False, description="Ask people for a blind A/B review.")
    review_pairs: int = Field(8, ge=1, le=50, description="Pairs in the review.")
    review_hours: float = Field(
        48, gt=0, description="Time that the review waits for votes, in hours."
    )
