"""What a training may take: hours and money."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class TrainingLimitsConfig(Section):
    """Limits of a training, held against the estimate before it and watched while it runs."""

    max_hours: float | None = Field(
        None, gt=0, description="Hours that training may take, all its tries together."
    )
    max_cost: float | None = Field(
        None, gt=0, description="What training may cost, in governance.currency."
    )
    device_cost_per_hour: float | None = Field(
        None,
        ge=0,
        description="Price of a training GPU (of the machine, where there is none), in "
        "governance.currency an hour; None takes governance.machine_cost_per_hour.",
    )
