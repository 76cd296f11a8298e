"""Limits of the rules that watch a training run; docs/training.md says where they come from."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class LossRulesConfig(Section):
    """Limits from which a loss curve is in trouble."""

    spike_factor: float = Field(
        3.0, gt=1, description="Training loss over its running median that counts as a spike."
    )
    spike_streak: int = Field(
        3, ge=1, description="Spikes in a row that stop training; fewer only warn."
    )
    divergence_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the progress made, or of the lowest training loss, that may be "
        "lost again before training counts as diverged.",
    )
    overfit_ratio: float = Field(
        1.2,
        gt=1,
        description="Last over best validation loss that stops training: overfitting while the "
        "training loss falls, divergence while it rises.",
    )
    plateau_evaluations: int | None = Field(
        3,
        ge=2,
        description="Validation passes without a better loss that stop training; null goes on.",
    )
    plateau_nats: float = Field(
        0.001,
        ge=0,
        description="A fall of the validation loss by less does not count, nats.",
    )
