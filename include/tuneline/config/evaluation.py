"""The evaluation section: metrics, limits and the review of the candidate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

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


class ExtractionConfig(Section):
    """The extraction audit: what the tuned model writes out of its training rows."""

    identifiers: int = Field(
        128, ge=1, description="Identifiers of training rows that are tried; all if there are less."
    )
    max_written_out: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the identifiers in training rows that the model may write out, "
        "beyond the base and chance.",
    )
    max_preferred: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of the identifiers that the model may hold likelier than 15 others of "
        "the same shape, beyond the base and chance.",
    )
    max_exposed_canaries: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of training.canaries that may be likelier than 255 random numbers.",
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
    extraction: ExtractionConfig = ExtractionConfig()
    max_regression: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Allowed drop on general questions, as a share; None takes 0.03.",
    )
    max_category_regression: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Allowed drop in one category of general questions, as a share, where it is "
        "more than chance.",
    )
    regression_to_see: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Loss on general questions that must be seen with a probability of 80 %; "
        "otherwise base_regression is inconclusive.",
    )
    regression_questions: int | None = Field(
        None, ge=20, description="Most general questions that are asked; None asks all if needed."
    )
    regression_first_look: int = Field(
        400,
        ge=20,
        description="General questions that are asked at first; more follow where these leave a "
        "loss possible.",
    )
    regression_texts: int | None = Field(
        None, ge=2, description="General texts whose perplexity is measured; None takes all."
    )
    max_perplexity_ratio: float | None = Field(
        None,
        gt=1,
        description="Allowed perplexity on general texts, as a multiple of the base's; None takes "
        "1.5.",
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
    review_pairs: int = Field(
        10,
        ge=1,
        le=200,
        description="Pairs of the tuned model and the base in the review; as many more with the "
        "released model, if its answers are at hand.",
    )
    review_hours: float = Field(
        48, gt=0, description="Time that the review waits for votes, in hours."
    )
    reviewers: list[str] = Field(
        [],
        description="Users who are asked, by the names that Airflow knows them by; votes of "
        "others do not count. Empty: the model's approvers are asked, and every vote counts.",
    )
    reviewers_per_pair: int = Field(
        2, ge=1, description="Reviewers who are asked about each pair, at most all of `reviewers`."
    )
    review_pairs_per_task: int = Field(
        5, ge=1, le=20, description="Pairs in one task of a reviewer."
    )
    review_alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Level of the sign test (two-sided) that decides the review.",
    )
    review_required: bool | None = Field(
        None,
        description="Fail human_review while pairs lack votes; false only warns. None: as the "
        "profile says, true in production.",
    )
    review_judge_pairs: int = Field(
        0,
        ge=0,
        le=5000,
        description="Pairs beyond those of people that a judge is to vote on. Its votes inform "
        "once `tuneline review import --judge` has read them.",
    )

    @field_validator("reviewers")
    @classmethod
    def _reviewers_are_names(cls, names: list[str]) -> list[str]:
        if any(not name.strip() for name in names):
            raise ValueError("a reviewer has an empty name; leave it out")
        if len(set(names)) < len(names):
            raise ValueError("a reviewer is named twice; keep one")
        return names

    @property
    def votes_per_pair(self) -> int:
        """Number of reviewers who are asked about each pair."""
        return min(self.reviewers_per_pair, len(self.reviewers) or 1)
