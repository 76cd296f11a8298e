"""Limits of a training: hours and money."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class TrainingLimitsConfig(Section):
    """Limits that the estimate is compared with before training, and that are watched during it."""

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
