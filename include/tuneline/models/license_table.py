"""The rules of licences as `license_rules.yaml` states them, found by a licence's name."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Decision = Literal["allowed", "person", "refused"]
Use = Literal["research", "internal", "hosted", "distributed"]

NONE = "NOASSERTION"
_UNSTATED = ("", "unknown", "other", "none", "noassertion", "unlicensed")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Uses = dict[Use, Decision]


class _Users(_Part):
    limit: int
    binds: list[Use]
    reason: str


class _Region(_Part):
    region: str
    always: bool = False
    reason: str
    source: str


class _Outputs(_Part):
    decision: Decision
    reason: str


class _ModelName(_Part):
    begins: str
    binds: list[Use]
    reason: str


class _Kind(_Part):
    uses: Uses
    reason: str
    as_data: Uses = {}
    as_package: Uses = {}
    duties: list[str] = []


class Rule(_Part):
    """What one licence, or a family of them, allows; `license_rules.yaml` explains the fields."""

    ids: list[str] = Field(min_length=1)
    source: str
    read: str | None = None
    title: str | None = None
    names: list[str] | dict[str, list[str]] = []
    pattern: str | None = None
    kind: str | None = None
    uses: Uses = {}
    reason: str | None = None
    as_data: Uses = {}
    as_package: Uses = {}
    as_generator: Uses = {}
    generator_reason: str | None = None
    family: str | None = None
    users: _Users | None = None
    not_for: _Region | None = None
    outputs_train: _Outputs | None = None
    model_name: _ModelName | None = None
    notice: str | None = None
    display: str | None = None
    duties: list[str] = []


class _Exceptions(_Part):
    ids: list[str]
    makes: str
    source: str


class _Package(_Part):
    license: str
    source: str


class _Table(_Part):
    as_of: Any
    packages: dict[str, _Package]
    kinds: dict[str, _Kind]
    exceptions: list[_Exceptions]
    rules: list[Rule]


@cache
def table() -> _Table:
    """Return the rules."""
    import yaml

    text = resources.files("tuneline.models").joinpath("license_rules.yaml").read_text("utf-8")
    return _Table.model_validate(yaml.safe_load(text))


def duties_of(rule: Rule) -> list[str]:
    """Return what people have to do who use something under a licence."""
    shared = table().kinds[rule.kind].duties if rule.kind else []
    return [*shared, *rule.duties]


def normalise(text: str | None) -> str:
    """Return the SPDX id or expression of a licence in any spelling.

    `NOASSERTION` stands for none; an unknown text is returned as it is.
    """
    cleaned = re.sub(r"\s+", " ", (text or "").strip())
    if cleaned.lower() in _UNSTATED:
        return NONE
    key = key_of(cleaned)
    if key in _ids():
        return _ids()[key][0]
    return key.upper() if _by_pattern(key) else cleaned


def find_rule(name: str) -> Rule | None:
    """Return the rule for a licence's name in any spelling, None if there is none."""
    key = key_of(name)
    return _ids()[key][1] if key in _ids() else _by_pattern(key)


def key_of(name: str) -> str:
    """Return a name without case, spaces and punctuation; `LicenseRef-` marks unlisted ones."""
    lowered = name.strip().lower().removeprefix("licenseref-")
    return re.sub(r"[^a-z0-9.+]+", "-", lowered).strip("-")


@cache
def _ids() -> dict[str, tuple[str, Rule]]:
    """Return id and rule by every name that a rule lists."""
    found: dict[str, tuple[str, Rule]] = {}
    # A family that has a pattern is known by that alone: `CC-BY` without a version is none of it.
    for rule in (rule for rule in table().rules if rule.pattern is None):
        names = rule.names if isinstance(rule.names, dict) else {rule.ids[0]: rule.names}
        for identifier in rule.ids:
            for name in (identifier, *names.get(identifier, [])):
                found[key_of(name)] = (identifier, rule)
    return found


@cache
def _by_pattern(key: str) -> Rule | None:
    rules = (rule for rule in table().rules if rule.pattern and re.search(rule.pattern, key))
    return next(rules, None)
