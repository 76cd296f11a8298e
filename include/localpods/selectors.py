"""Label and field selectors.

Grammar: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api. As there,
`!=` and `notin` also match objects without the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localpods.objects import Json
from localpods.replies import bad_request

_KEY = r"(?P<key>[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?)"
_VALUE = r"(?P<value>([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?)"
_LABEL = (
    re.compile(rf"{_KEY}\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)"),
    re.compile(rf"{_KEY}\s*(?P<operator>==|=|!=)\s*{_VALUE}"),
    re.compile(rf"(?P<operator>!?)\s*{_KEY}"),
)
_FIELD = re.compile(r"(?P<key>[^=!]+?)\s*(?P<operator>==|=|!=)\s*(?P<value>.*)")
# Commas inside parentheses separate values; all others separate requirements.
_SEPARATOR = re.compile(r",(?![^(]*\))")

_OBJECT_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_SUBJECT_FIELDS = {f"involvedObject.{name}" for name in ("kind", "name", "namespace", "uid")}
_FIELDS = {
    "Pod": _OBJECT_FIELDS | {"spec.nodeName", "spec.restartPolicy", "status.phase"},
    "Job": _OBJECT_FIELDS,
    "Event": _OBJECT_FIELDS | _SUBJECT_FIELDS | {"reason", "type"},
}


@dataclass(frozen=True)
class _Requirement:
    """A key with one of these values (None: any); not `wanted` means that it must not match."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return found is self.wanted


class Selector:
    """A selector such as `a=b,c!=d,!e,f in (g,h)` on labels and `status.phase=Failed` on fields.

    Raises:
        ApiError: 400 if a requirement cannot be read, or a field of the kind is not supported.
    """

    def __init__(self, labels: str = "", fields: str = "", kind: str = "Pod") -> None:
        self._labels = _parse(labels, *_LABEL)
        self._fields = _parse(fields, _FIELD)
        for requirement in self._fields:
            if requirement.key not in _FIELDS[kind]:
                raise bad_request(f"field label not supported: {requirement.key}")

    def matches(self, obj: Json) -> bool:
        """Return True if an object meets all requirements."""
        labels = obj["metadata"].get("labels") or {}
        return all(requirement.matches(labels) for requirement in self._labels) and all(
            requirement.matches({requirement.key: _field(obj, requirement.key)})
            for requirement in self._fields
        )


def _parse(text: str, *forms: re.Pattern[str]) -> list[_Requirement]:
    requirements = []
    for part in _SEPARATOR.split(text) if text.strip() else []:
        match = next(filter(None, (form.fullmatch(part.strip()) for form in forms)), None)
        if match is None:
            raise bad_request(f"unable to parse requirement: {part!r}")
        groups = match.groupdict()
        given = groups["values"].split(",") if "values" in groups else [groups.get("value")]
        values = frozenset(value.strip() for value in given if value is not None)
        exists = "value" not in groups and "values" not in groups
        wanted = groups["operator"] not in ("!", "!=", "notin")
        requirements.append(_Requirement(groups["key"], None if exists else values, wanted))
    return requirements


def _field(obj: Json, path: str) -> str:
    value: object = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)
