"""Settings of live tracking."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tuneline.config.section import Section


class TrackingConfig(Section):
    """The trackers that show a training run live."""

    tracking: list[Literal["mlflow", "wandb"]] = Field(
        ["mlflow"],
        description="Experiment trackers, any of mlflow and wandb; [] for none. "
        "docs/tracking.md says where each logs to.",
    )
    tracking_project: str = Field(
        "tuneline", min_length=1, description="Experiment in MLflow, project in Weights & Biases."
    )

    @field_validator("tracking")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("name each tracker once")
        return trackers
