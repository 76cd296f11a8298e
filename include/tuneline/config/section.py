"""What all sections of the configuration have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section refuses fields that it does not know, and is never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
