"""Label and field selectors.

Grammar: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api. As there,
`!=` and `notin` also match objects without the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from localpods.objects import Json
from localpods.replies import bad_request

Operator = Literal["in", "notin", "exists", "absent"]

_KEY = r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_SET = re.compile(rf"(?P<key>{_KEY})\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUALITY = re.compile(rf"(?P<key>{_KEY})\s*(?P<operator>==|=|!=)\s*(?P<value>{_VALUE})?")
_EXISTENCE = re.compile(rf"(?P<absent>!\s*)?(?P<key>{_KEY})")
# Commas inside parentheses separate values; all others separate requirements.
_SEPARATOR = re.compile(r",(?![^(]*\))")

_OBJECT_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
FIELDS = {
    "Pod": _OBJECT_FIELDS | {"spec.nodeName", "spec.restartPolicy", "status.phase"},
    "Job": _OBJECT_FIELDS,
    "Event": _OBJECT_FIELDS
    | {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "reason",
        "type",
    },
}


@dataclass(frozen=True)
class Requirement:
    """One condition of a selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return True if labels meet the condition."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "absent":
            return self.key not in labels
        if self.operator == "in":
            return self.key in labels and labels[self.key] in self.values
        return self.key not in labels or labels[self.key] not in self.values


@dataclass(frozen=True)
class Selector:
    """A selector on labels and fields; an empty one matches everything."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, obj: Json) -> bool:
        """Return True if an object meets all conditions."""
        labels = obj["metadata"].get("labels") or {}
        return all(requirement.matches(labels) for requirement in self.labels) and all(
            requirement.matches({requirement.key: _field(obj, requirement.key)})
            for requirement in self.fields
        )


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Read a label selector such as `a=b,c!=d,!e,f in (g,h)`.

    Raises:
        ApiError: 400 if a requirement cannot be read.
    """
    return tuple(_label_requirement(part.strip()) for part in _parts(text))


def parse_fields(text: str, supported: frozenset[str]) -> tuple[Requirement, ...]:
    """Read a field selector such as `status.phase!=Failed,metadata.name=x`.

    Raises:
        ApiError: 400 if a requirement cannot be read or its field is not in `supported`.
    """
    requirements = []
    for part in _parts(text):
        key, operator, value = _split_field(part.strip())
        if key not in supported:
            raise bad_request(f"field label not supported: {key}")
        requirements.append(Requirement(key, operator, frozenset({value})))
    return tuple(requirements)


def _parts(text: str) -> list[str]:
    return _SEPARATOR.split(text) if text.strip() else []


def _label_requirement(part: str) -> Requirement:
    if match := _SET.fullmatch(part):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(match["key"], "in" if match["operator"] == "in" else "notin", values)
    if match := _EQUALITY.fullmatch(part):
        value = frozenset({match["value"] or ""})
        return Requirement(match["key"], "notin" if match["operator"] == "!=" else "in", value)
    if match := _EXISTENCE.fullmatch(part):
        return Requirement(match["key"], "absent" if match["absent"] else "exists")
    raise bad_request(f"unable to parse requirement: {part!r}")


def _split_field(part: str) -> tuple[str, Operator, str]:
    for sign, operator in (("!=", "notin"), ("==", "in"), ("=", "in")):
        key, found, value = part.partition(sign)
        if found:
            return key.strip(), "notin" if operator == "notin" else "in", value.strip()
    raise bad_request(f"invalid field selector: {part!r}; can't understand it")


def _field(obj: Json, path: str) -> str:
    value: object = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)
