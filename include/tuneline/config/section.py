"""The base of all sections of the configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class User(Section):
    """A user of Airflow, written as a name or as `{id: 7, name: alice}`.

    Airflow tells users apart by their ids, which are the names only under its own simple auth
    manager: FAB numbers users, Keycloak gives them UUIDs.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(min_length=1, description="The name that Airflow shows.")
    id: str | None = Field(
        None, min_length=1, description="The id by which Airflow knows the user; null: unknown."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, given: Any) -> Any:
        return {"name": given.strip()} if isinstance(given, str) else given

    @model_serializer
    def _written(self) -> str | dict[str, str]:
        return self.name if self.id is None else {"id": self.id, "name": self.name}
