"""The settings by which a chain leaves an upstream: its answers, and its failures."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class BreakerConfig(Section):
    """When an upstream that keeps failing is left alone, and for how long."""

    failures: int = Field(
        5, ge=1, le=10_000, description="Failures in a row that open the circuit."
    )
    error_share: float = Field(
        0.5, gt=0, le=1, description="Share of failures within the window that opens it too."
    )
    window_s: float = Field(30.0, gt=0, le=3600, description="Length of that window.")
    window_requests: int = Field(
        20, ge=2, le=100_000, description="Attempts that the window must hold to be judged."
    )
    open_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Time for which nothing is sent; then one request at a time tries it.",
    )


class LowConfidenceConfig(Section):
    """The limits below which an answer is not trusted (natural logarithms; 0 is certainty)."""

    min_mean_logprob: float = Field(
        lt=0,
        description="Fall back when the mean log-probability of the answer's tokens is below "
        "this. Calibrate it on validation rows.",
    )
    min_token_logprob: float | None = Field(
        None, lt=0, description="Fall back when the weakest token is below this."
    )
    stream_window_tokens: int = Field(
        0,
        ge=0,
        le=512,
        description="Hold back this many first tokens of a stream and judge them; 0 leaves "
        "streams unjudged.",
    )
    stream_min_mean_logprob: float | None = Field(
        None,
        lt=0,
        description="The limit for the mean of the tokens that are held back; None takes "
        "`min_mean_logprob`. The first tokens are not as sure as all.",
    )
