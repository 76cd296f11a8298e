"""The price of tokens: a price list, or a machine's hourly cost divided by its throughput."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from tuneline.config.section import Section

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Rates:
    """Cost of 1,000 prompt and 1,000 completion tokens, in the ledger's currency."""

    per_1k_prompt: float
    per_1k_completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of one attempt, in the ledger's currency."""
        return (
            prompt_tokens * self.per_1k_prompt + completion_tokens * self.per_1k_completion
        ) / 1000.0


class PriceConfig(Section):
    """Either both prices per 1,000 tokens, or an hourly cost with a measured throughput."""

    per_1k_prompt: float | None = Field(None, ge=0, description="Price of 1,000 prompt tokens.")
    per_1k_completion: float | None = Field(
        None, ge=0, description="Price of 1,000 completion tokens."
    )
    hourly_cost: float | None = Field(
        None, ge=0, description="What the upstream's machine costs in an hour."
    )
    completion_tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="Completion tokens that machine writes in a second under its usual load, "
        "as the latency benchmark measured it.",
    )
    prompt_tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="Prompt tokens that machine reads in a second. Leave it out when the "
        "completion throughput was measured with prompts included: prompts are then free, "
        "since their time is already in the price of the completion.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> PriceConfig:
        listed = (self.per_1k_prompt, self.per_1k_completion)
        derived = (self.hourly_cost, self.completion_tokens_per_second)
        if None not in listed and derived == (None, None) and self.prompt_tokens_per_second is None:
            return self
        if None not in derived and listed == (None, None):
            return self
        raise ValueError(
            "give either per_1k_prompt and per_1k_completion, or hourly_cost and "
            "completion_tokens_per_second"
        )

    def rates(self) -> Rates:
        """Return the two rates, derived from the hourly cost where no price is listed."""
        if self.per_1k_prompt is not None and self.per_1k_completion is not None:
            return Rates(self.per_1k_prompt, self.per_1k_completion)
        assert self.hourly_cost is not None
        assert self.completion_tokens_per_second is not None
        per_second = self.hourly_cost / _SECONDS_PER_HOUR
        prompt = self.prompt_tokens_per_second
        return Rates(
            per_1k_prompt=1000.0 * per_second / prompt if prompt else 0.0,
            per_1k_completion=1000.0 * per_second / self.completion_tokens_per_second,
        )
