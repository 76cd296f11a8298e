"""The evaluation section: metrics, limits and the review of the candidate."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tuneline.config.section import Limit, Section, User

# By what an answer is scored, but for a command.
Metric = Literal["json_field", "macro_f1", "exact", "number", "tool_calls", "chrf", "rouge_l"]


class AgainstReleasedConfig(Section):
    """The comparison with the released model, on the hold-out rows of the run."""

    enabled: Annotated[bool, Limit("holdout_performance", "higher", levels=(False, True))] = True
    """Compare with the released model, if there is one under the same name."""
    margin: Annotated[float, Limit("holdout_performance", "lower")] = Field(0.02, gt=0, lt=1)
    """Share of the hold-out rows by which the candidate may be worse than the released model; the
    lower end of the difference must not lie below it."""
    text_margin: Annotated[float, Limit("holdout_performance", "lower")] = Field(0.05, gt=0, lt=1)
    """Share, or mean chrF, by which each other part of the answers (fields, calls of tools, texts)
    may be worse than that of the released model, and of the base."""


class SlicesConfig(Section):
    """The comparison of parts of the hold-out (label, prompt length, language, source)."""

    min_rows: Annotated[int, Limit("holdout_performance", "lower")] = Field(10, ge=2)
    """Rows below which a part is not judged alone."""
    worse_by: Annotated[float, Limit("holdout_performance", "lower")] = Field(0.1, gt=0, le=1)
    """Smallest gap, beyond chance, between the metric of a part and that of all other rows at which
    the part counts as clearly worse, which fails in production and warns on a laptop."""


class ExtractionConfig(Section):
    """The extraction audit: what the tuned model writes out of its training rows."""

    identifiers: Annotated[int, Limit("pii_scrubbing", "higher")] = Field(128, ge=1)
    """Identifiers of training rows that are tried; all if there are less."""
    max_written_out: Annotated[float, Limit("pii_scrubbing", "lower")] = Field(0.05, ge=0, lt=1)
    """Share of the identifiers in training rows that the model may write out, beyond the base and
    chance."""
    max_preferred: Annotated[float, Limit("pii_scrubbing", "lower")] = Field(0.15, ge=0, lt=1)
    """Share of the identifiers that the model may hold likelier than 15 others of the same shape,
    beyond the base and chance."""
    max_exposed_canaries: Annotated[float, Limit("pii_scrubbing", "lower")] = Field(0.1, ge=0, lt=1)
    """Share of training.canaries that may be likelier than 255 random numbers."""


class LoadConfig(Section):
    """The load that is declared for production; the latency benchmark must hold it."""

    requests_per_s: float | None = Field(None, gt=0)
    """Requests of all users together, at the busiest time; null without a declared load, and then
    only the lowest level of evaluation.concurrency must hold. profile: production requires one."""
    users: int | None = Field(None, ge=1)
    """Users at the busiest time; in place of requests_per_s."""
    requests_per_user_per_minute: float = Field(1.0, gt=0)
    """Requests of one user; also counts the users that a server can carry."""
    replicas: int = Field(1, ge=1)
    """Servers that share the load; one of them is measured with its part."""
    headroom: Annotated[float, Limit("latency_benchmark", "higher")] = Field(0.25, ge=0)
    """Spare load that servers must be able to carry, as a share."""
    seconds: float = Field(30.0, gt=0)
    """Seconds during which requests of the load arrive; up to four times as many if fewer requests
    would come than decide."""

    @property
    def rate(self) -> float | None:
        """The declared requests per second; null without a declared load."""
        if self.users is not None:
            return self.users * self.requests_per_user_per_minute / 60
        return self.requests_per_s

    @property
    def rate_of_a_replica(self) -> float | None:
        """The requests per second that one server must bear, headroom included."""
        return None if self.rate is None else self.rate * (1 + self.headroom) / self.replicas

    @model_validator(mode="after")
    def _declared_once(self) -> Self:
        if self.requests_per_s is not None and self.users is not None:
            raise ValueError("load: give requests_per_s or users, not both")
        return self


class EvaluationConfig(Section):
    """Metrics, limits and the review of the candidate."""

    metric: Annotated[Literal["auto", Metric, "scorer"], Limit("holdout_performance", "within")] = (
        "auto"
    )
    """Task metric. json_field compares the label field of a JSON answer, macro_f1 gives every label
    the same weight, exact the whole answer, number the one that it ends in, tool_calls names and
    arguments, chrf and rouge_l the likeness of free texts, scorer what evaluation.scorer says; auto
    chooses by the expected answers."""
    scorer: list[str] | None = Field(None, min_length=1)
    """Command in the image of the steps that reads a row a line (`{"messages": …, "expected": …,
    "answer": …}`) and writes a number from 0 to 1 a line; with evaluation.metric: scorer."""
    numeric_tolerance: Annotated[float, Limit("holdout_performance", "lower")] = Field(
        1e-4, ge=0, lt=1
    )
    """Largest relative difference of two equal numbers."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Limit of an answer, in tokens; null takes a quarter more than the longest expected answer
    has, and 8. A limit below the longest is refused before training."""
    shards: int = Field(1, ge=1, le=64)
    """Number of pods that answer the hold-out at once; each starts an engine."""
    min_gain: Annotated[float, Limit("holdout_performance", "higher")] = Field(0.0, ge=-1, le=1)
    """The lower end of the gain over the base must exceed it, also where the base is shown
    examples."""
    min_gain_over_trivial: Annotated[float, Limit("holdout_performance", "higher")] = Field(
        0.0, ge=-1, le=1
    )
    """The lower end of the gain over a constant answer must exceed it; that over the nearest
    training row should."""
    min_metric: Annotated[float | None, Limit("holdout_performance", "higher")] = Field(
        None, ge=0, le=1
    )
    """The lower end of the task metric must reach it; required in production."""
    fair_base_shots: Annotated[int, Limit("holdout_performance", "higher")] = Field(3, ge=0, le=32)
    """Training rows that the base is shown as examples."""
    against_released: AgainstReleasedConfig = AgainstReleasedConfig()
    slices: SlicesConfig = SlicesConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    max_regression: Annotated[float | None, Limit("base_regression", "lower", unset=0.03)] = Field(
        None, gt=0, le=1
    )
    """Allowed drop on general questions, as a share; null takes 0.03."""
    max_category_regression: Annotated[float, Limit("base_regression", "lower")] = Field(
        0.1, gt=0, le=1
    )
    """Allowed drop in one category of general questions, as a share, where it is more than
    chance."""
    regression_to_see: Annotated[float, Limit("base_regression", "lower")] = Field(0.05, gt=0, le=1)
    """Loss on general questions that the 95 % interval must exclude; otherwise base_regression is
    inconclusive."""
    regression_questions: int | None = Field(None, ge=20)
    """Most general questions that are asked; null asks all if needed."""
    regression_first_look: int = Field(400, ge=20)
    """General questions that are asked at first; more follow where these leave a loss possible."""
    regression_texts: Annotated[int | None, Limit("base_regression", "higher", unset=math.inf)] = (
        Field(None, ge=2)
    )
    """General texts whose perplexity is measured; null takes all."""
    max_perplexity_ratio: Annotated[float | None, Limit("base_regression", "lower", unset=1.5)] = (
        Field(None, gt=1)
    )
    """Allowed perplexity on general texts, as a multiple of the base's; null takes 1.5."""
    determinism_prompts: int | None = Field(None, ge=2)
    """Prompts that are repeated; null takes as many as identical_share_to_show needs."""
    determinism_repeats: int = Field(2, ge=2)
    """Times that each prompt is asked, alone and in batches."""
    determinism_tokens: int | None = Field(48, ge=16)
    """Tokens of an answer that are compared, or as many as reach its label; null compares whole
    answers."""
    determinism_forms: Literal["shipped", "all"] = "shipped"
    """Forms of the model that are tried: the one that ships, or also the merged one in f16 and the
    adapter apart, if the run has them."""
    min_identical_share: Annotated[float, Limit("determinism", "higher")] = Field(1.0, ge=0, le=1)
    """Share of repeats with the same parsed answer."""
    identical_share_to_show: Annotated[float, Limit("determinism", "higher")] = Field(
        0.9, gt=0, lt=1
    )
    """Share of prompts that must be shown, with 95 % confidence, to keep their answer; otherwise
    determinism is inconclusive."""
    concurrency: list[int] = Field([1, 2, 4, 8], min_length=4)
    """Requests under way at once in each level of the latency benchmark."""
    latency_requests: Annotated[int, Limit("latency_benchmark", "higher")] = Field(8, ge=1)
    """Requests at each level, at least twice the level; the lowest has as many as decide. A p50 is
    claimed from 6 requests on, a p90 from 36, a p95 from 72, a p99 from 368."""
    latency_warmup: int | None = Field(None, ge=0)
    """Requests before the latency benchmark that are not counted; null takes one for each slot of
    the engine."""
    max_ttft_seconds: Annotated[float, Limit("latency_benchmark", "lower")] = Field(2.0, gt=0)
    """Objective: time to first token."""
    max_tpot_seconds: Annotated[float, Limit("latency_benchmark", "lower")] = Field(0.2, gt=0)
    """Objective: time per output token."""
    objective_share: Annotated[float, Limit("latency_benchmark", "higher")] = Field(0.9, gt=0, lt=1)
    """Share of the requests of a load that must meet both objectives, by its exact interval."""
    load: LoadConfig = LoadConfig()
    review: bool = False
    """Ask people for a blind A/B review."""
    review_pairs: int = Field(10, ge=1, le=200)
    """Pairs of the tuned model and the base in the review; as many more with the released model, if
    its answers are at hand."""
    review_hours: float = Field(48, gt=0)
    """Time that the review waits for votes, in hours."""
    reviewers: list[User] = Field([])
    """Users who are asked, each a name or `{id: 7, name: ann}`; votes of others do not count.
    Empty: the model's approvers are asked, and every vote counts."""
    reviewers_per_pair: int = Field(2, ge=1)
    """Reviewers who are asked about each pair, at most all of `reviewers`."""
    review_pairs_per_task: int = Field(5, ge=1, le=20)
    """Pairs in one task of a reviewer."""
    review_alpha: Annotated[float, Limit("human_review", "lower")] = Field(0.05, gt=0, lt=0.5)
    """Level of the sign test (two-sided) that decides the review."""
    review_required: bool | None = None
    """Fail human_review while pairs lack votes; false only warns. null: true in production where a
    review is asked for."""

    @model_validator(mode="after")
    def _scorer_is_metric(self) -> Self:
        if (self.metric == "scorer") != (self.scorer is not None):
            raise ValueError("set metric: scorer and the command of scorer together")
        return self

    @field_validator("reviewers")
    @classmethod
    def _reviewers_differ(cls, users: list[User]) -> list[User]:
        if len({user.name for user in users}) < len(users):
            raise ValueError("a reviewer is named twice; keep one")
        return users

    @property
    def reviewer_names(self) -> list[str]:
        """The names of the reviewers, under which their votes are kept."""
        return [user.name for user in self.reviewers]

    @property
    def votes_per_pair(self) -> int:
        """Number of reviewers who are asked about each pair."""
        return min(self.reviewers_per_pair, len(self.reviewers) or 1)
