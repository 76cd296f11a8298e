"""The base of all sections of the configuration, and what marks a field as a limit."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown fields.

    The text below a field is its description, which the form and docs/reference show.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@cache
def described(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section with the texts below them as their descriptions.

    pydantic can do that for every class as it is made, which costs each command 0.08 s.
    """
    texts: dict[str, str] = {}
    for kind in section.__mro__:
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            [made] = ast.parse(inspect.getsource(kind)).body
            assert isinstance(made, ast.ClassDef)
            for field, text in pairwise(made.body):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(words))),
                    ):
                        texts.setdefault(name, " ".join(words.split()))
    for name, info in section.model_fields.items():
        info.description = info.description or texts.get(name)
    return section.model_fields


class User(Section):
    """A user of Airflow, written as a name or as `{id: 7, name: alice}`.

    Airflow tells users apart by their ids, which are the names only under its own simple auth
    manager: FAB numbers users, Keycloak gives them UUIDs.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(min_length=1)
    """The name that Airflow shows."""
    id: str | None = Field(None, min_length=1)
    """The id by which Airflow knows the user; null: unknown."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, given: Any) -> Any:
        return {"name": given.strip()} if isinstance(given, str) else given

    @model_serializer
    def _written(self) -> str | dict[str, str]:
        return self.name if self.id is None else {"id": self.id, "name": self.name}


Value = float | bool | str | Sequence[str] | None
BREACH = ("warn", "fail")


@dataclass(frozen=True)
class Limit:
    """Metadata of a field that is a limit, which a policy bounds (`tuneline.config.policy`).

    Attributes:
        item: the item whose verdict it decides; empty for a map whose keys are the items.
        stricter: for texts, whether they have to be among those of the policy (`within`), or
            include all of them (`includes`).
        unset: the value that it stands for while it is null.
        levels: its values from the loosest to the strictest, where they are not numbers; False
            and True for a text that has to be given.
    """

    item: str
    stricter: Literal["lower", "higher", "within", "includes"]
    unset: float | None = None
    levels: tuple[bool | str, ...] = ()

    def read(self, value: Any) -> Any:
        """Return a value of the setting as it is compared."""
        if self.stricter in ("within", "includes"):
            return tuple([value] if isinstance(value, str) else value or ())
        if self.levels == (False, True):
            return bool(value)
        return self.unset if value is None else value

    def is_looser(self, value: Any, floor: Any) -> bool:
        """Return True if a value is looser than the policy's."""
        if self.stricter == "within":
            return not set(value) <= set(floor)
        if self.stricter == "includes":
            return not set(value) >= set(floor)
        if self.levels:
            return self.levels.index(value) < self.levels.index(floor)
        return bool(value > floor if self.stricter == "lower" else value < floor)

    def fits(self, value: object) -> bool:
        """Return True if a policy may state the value."""
        if value is None:
            return True
        if self.levels:
            return value in self.levels
        if self.stricter in ("within", "includes"):
            return isinstance(value, list) and all(isinstance(text, str) for text in value)
        return isinstance(value, int | float) and not isinstance(value, bool)

    def bound(self, floor: Any) -> str:
        """Return the policy's value as part of a sentence."""
        if self.levels:
            return f"{floor}"
        names = {"lower": "at most", "higher": "at least", "within": "only", "includes": "with"}
        return f"{names[self.stricter]} {shown(floor)}"


def shown(value: Any) -> str:
    """Return a value of a limit for a sentence."""
    if isinstance(value, list | tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def limits_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Limit]]:
    """Yield the limits below a section by their paths; a map is one limit for each of its keys."""
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from limits_of(kind, f"{prefix}{name}.")
        yield from ((prefix + name, mark) for mark in field.metadata if isinstance(mark, Limit))
