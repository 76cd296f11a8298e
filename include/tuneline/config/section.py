"""The base of all sections of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
