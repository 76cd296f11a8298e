"""The evaluation section: what the candidate must show before it ships."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneline.config.section import Section


class EvaluationConfig(Section):
    """What the candidate must show before it ships."""

    metric: Literal["auto", "json_field", "exact"] = Field(
        "auto", description="Task metric; auto compares the label field of a JSON answer."
    )
    max_new_tokens: int = Field(48, ge=1, description="Tokens an answer may have.")
    min_gain: float = Field(
        0.0, ge=-1, le=1, description="Lower bound that the gain over the base must exceed."
    )
    max_regression: float | None = Field(
        None, gt=0, le=1, description="Allowed drop on general questions; None takes 2 × noise."
    )
    regression_questions: int | None = Field(
        None, ge=20, description="Ask only this many general questions; None asks all."
    )
    determinism_prompts: int = Field(4, ge=1, description="Prompts that are repeated.")
    determinism_repeats: int = Field(3, ge=2, description="Repeats of each prompt.")
    min_identical_share: float = Field(
        1.0, ge=0, le=1, description="Share of repeats whose parsed answer must agree."
    )
    concurrency: list[int] = Field(
        [1, 2, 4, 8], min_length=4, description="Concurrency levels of the latency benchmark."
    )
    latency_requests: int = Field(8, ge=1, description="Requests at each level.")
    max_ttft_seconds: float = Field(2.0, gt=0, description="Objective: time to first token.")
    max_tpot_seconds: float = Field(0.2, gt=0, description="Objective: time per output token.")
    review: bool = Field(False, description="Ask people for a blind A/B review.")
    review_pairs: int = Field(8, ge=1, le=50, description="Pairs in the review.")
    review_hours: float = Field(48, gt=0, description="How long the review waits, hours.")
