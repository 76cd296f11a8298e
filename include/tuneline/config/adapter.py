"""Settings of the adapter: its shape, and the search for its rank."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.section import Section

MAX_RANK = 512


class AdapterConfig(Section):
    """The LoRA adapter."""

    r: int = Field(16, ge=1, le=MAX_RANK, description="LoRA rank.")
    alpha: int | None = Field(None, ge=1, description="LoRA alpha; null takes 2 × r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Modules that get an adapter."
    )
    rslora: bool = Field(False, description="Scale by alpha/sqrt(r) (rank-stabilised LoRA).")
    dora: bool = Field(False, description="Weight-decomposed LoRA.")
    warm_start: Literal["none", "released"] = Field(
        "none",
        description="Weights that the adapter starts from: new ones (none), or those of the "
        "released adapter, which must have the same base, modules, rank and alpha. While nothing "
        "is released, training starts from new ones.",
    )
    sweep_r: list[int] = Field(
        [],
        description="Ranks to try on the validation rows before training; [] takes r as it is. "
        "Alpha keeps its ratio to r. With a warm start the rank is that of the released adapter, "
        "and no rank is tried.",
    )
    sweep_share: float = Field(
        0.25, gt=0, le=1, description="Share of the run's epochs that each rank is tried for."
    )
    sweep_steps: int | None = Field(
        None, ge=1, description="Optimiser steps that each rank is tried for, above sweep_share."
    )

    @property
    def alpha_over_r(self) -> float:
        """The ratio of alpha to r that the settings state."""
        return 2.0 if self.alpha is None else self.alpha / self.r

    def alpha_for(self, r: int) -> int:
        """Return the alpha of another rank at the same ratio."""
        return max(1, round(self.alpha_over_r * r))

    @field_validator("sweep_r")
    @classmethod
    def _several_ranks(cls, ranks: list[int]) -> list[int]:
        if len(ranks) == 1 or len(set(ranks)) < len(ranks):
            raise ValueError("name at least two different ranks, or none to take r as it is")
        wrong = [r for r in ranks if not 1 <= r <= MAX_RANK]
        if wrong:
            raise ValueError(f"a rank lies between 1 and {MAX_RANK}, not at {wrong[0]}")
        return ranks

    @model_validator(mode="before")
    @classmethod
    def _no_whole_modules(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "modules_to_save" in settings:
            raise ValueError(
                "modules_to_save: no serving engine loads an adapter that carries whole modules; "
                "leave it out and name linear layers in target_modules"
            )
        return settings
