"""Evidence: the measurements of a step and the verdict that follows from them.

A verdict without a measurement does not exist: `Evidence` refuses to be built
as a pass, warn, fail or inconclusive unless at least one measurement has a rule.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuneline.catalogue import Phase, Severity
from tuneline.errors import UserError

SCHEMA: Literal["tuneline/evidence/1"] = "tuneline/evidence/1"
RECORD_SCHEMA: Literal["tuneline/record/1"] = "tuneline/record/1"
SCHEMA_FILE = Path(__file__).with_name("evidence.schema.json")

Scalar = bool | int | float | str | None
Rule = Literal["<=", ">=", "<", ">", "==", "!=", "in"]
# `inconclusive`: the sample is too small to say that the limit holds or that it is broken.
Breach = Literal["fail", "inconclusive", "warn"]


_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class Verdict(StrEnum):
    """The outcome of an item."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    WARN = "warn"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"
    NOT_RUN = "not_run"
    WAIVED = "waived"


# From best to worst, for taking the worse of two opinions on one item.
_RANK = {
    Verdict(name): rank
    for rank, name in enumerate("not_applicable pass waived warn inconclusive not_run fail".split())
}


def worse(a: Verdict, b: Verdict) -> Verdict:
    """Return the worse of two verdicts."""
    return a if _RANK[a] >= _RANK[b] else b


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Measurement(_Strict):
    """One measured number (or flag) and, where it decides, its limit.

    `noise` is the standard error of `value` where the measure is noisy, in its unit.
    `on_breach` says what breaking the rule does to the verdict.
    """

    name: str
    value: Scalar
    unit: str
    rule: Rule | None = None
    limit: Scalar | list[Scalar] = None
    noise: float | None = None
    ok: bool | None = None
    on_breach: Breach = "fail"

    @model_validator(mode="after")
    def _ok_follows_from_the_rule(self) -> Measurement:
        # What is no number is stored as text, and breaks its limit.
        number = self.rule not in _COMPARE or not isinstance(self.value, str)
        if self.ok and not (self.rule and number and holds(self.value, self.rule, self.limit)):
            raise ValueError(f"{self.name} is said to hold: {self.value} {self.rule} {self.limit}")
        return self


class FileRef(_Strict):
    """A file that went into a step or came out of it."""

    name: str
    uri: str
    sha256: str
    bytes: int
    rows: int | None = None


class Read(_Strict):
    """Something that a step read of an earlier step or of the configuration.

    `name` is an artifact of `step`, or `measurements` for its numbers and its verdict; of the step
    `config` it is a section of the run's configuration. `sha256` is null if it was not there.
    """

    step: str
    name: str
    sha256: str | None = None


class _Findings(_Strict):
    """The fields that the files of items and of helper steps share."""

    summary: str
    measurements: list[Measurement] = []
    inputs: list[FileRef] = []
    artifacts: list[FileRef] = []
    started_at: str
    seconds: float
    environment: dict[str, Any] = {}
    airflow: dict[str, Any] | None = None
    reads: list[Read] = []


# In the files the step comes before its findings: pydantic begins with the last base's fields.
class _OfStep(_Strict):
    schema_: Literal["tuneline/record/1"] = Field(default=RECORD_SCHEMA, alias="schema")
    step: str
    phase: Phase


class _OfItem(_Strict):
    schema_: Literal["tuneline/evidence/1"] = Field(default=SCHEMA, alias="schema")
    item: str
    phase: Phase
    severity: Severity
    verdict: Verdict


class Record(_Findings, _OfStep):
    """The file of a helper step (train, export, …): evidence without a verdict (`record.json`)."""


class Evidence(_Findings, _OfItem):
    """One item's evidence file (`evidence.json`)."""

    @model_validator(mode="after")
    def _verdict_rests_on_a_measurement(self) -> Evidence:
        decided = self.verdict in (Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.INCONCLUSIVE)
        if decided and not any(m.rule is not None for m in self.measurements):
            raise ValueError(
                f"{self.item}: verdict {self.verdict} without a measurement that has a limit"
            )
        return self


def holds(value: Scalar, rule: Rule, limit: Scalar | Sequence[Scalar]) -> bool:
    """Return True if `value rule limit` is true; a NaN or missing value never holds."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if rule == "in":
        return isinstance(limit, Sequence) and not isinstance(limit, str) and value in limit
    if rule == "==":
        return value == limit
    if rule == "!=":
        return value != limit
    if isinstance(limit, bool | str) or not isinstance(limit, int | float):
        raise UserError(f"rule {rule!r} needs a number as its limit, got {limit!r}")
    if isinstance(value, str):
        raise UserError(f"rule {rule!r} needs a number as its value, got {value!r}")
    return bool(_COMPARE[rule](value, limit))


def breach_in(profile: str) -> Breach:
    """Return what a broken limit does that stops production and only warns on a laptop."""
    return "fail" if profile == "production" else "warn"


def measure(
    name: str,
    value: Scalar,
    unit: str,
    rule: Rule | None = None,
    limit: Scalar | Sequence[Scalar] = None,
    *,
    noise: float | None = None,
    tolerance: float | None = None,
    on_breach: Breach = "fail",
) -> Measurement:
    """State a measurement and, with a rule, whether it holds.

    Args:
        unit: its unit ("rows", "s", "share", "nats", …).
        rule: the comparison of `value` with `limit`; None for a number that only informs.
        noise: the standard error of a noisy `value`.
        tolerance: the harmless change that the limit allows (such as an allowed drop). A
            tolerance below the noise would decide by chance and is refused.

    Raises:
        UserError: if the tolerance is tighter than the noise.
    """
    if noise is not None and tolerance is not None and tolerance < noise:
        raise UserError(
            f"{name}: the allowed {tolerance:g} {unit} is tighter than the measured noise of "
            f"{noise:g} {unit}; allow more or measure on more rows"
        )
    frozen = list(limit) if isinstance(limit, Sequence) and not isinstance(limit, str) else limit
    return Measurement(
        name=name,
        value=_for_json(value),
        unit=unit,
        rule=rule,
        limit=frozen,
        noise=noise,
        ok=None if rule is None else holds(value, rule, limit),
        on_breach=on_breach,
    )


@dataclass(frozen=True)
class Finding:
    """Measurements, and what they say in a part of a sentence."""

    measurements: list[Measurement]
    sentence: str

    @property
    def failed(self) -> bool:
        """True if one of the rules is broken."""
        return any(measured.ok is False for measured in self.measurements)


def _for_json(value: Any) -> Scalar:
    """Turn a NumPy scalar into Python's type, and NaN or infinity into text for JSON."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def conclude(measurements: Sequence[Measurement]) -> Verdict:
    """Return the verdict of measurements: the worst that a broken rule asks for."""
    broken = (Verdict(m.on_breach) for m in measurements if m.ok is False)
    return max(broken, key=_RANK.__getitem__, default=Verdict.PASS)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))


def dump(entry: Evidence | Record) -> bytes:
    """Serialise an evidence or a record; evidence is checked against its published schema."""
    document = entry.model_dump(mode="json", by_alias=True)
    if isinstance(entry, Evidence):
        _validator().validate(document)
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def load_evidence(raw: bytes, where: str) -> Evidence:
    """Parse an evidence file; an invalid one is the user's error."""
    try:
        return _parsed(raw)
    except Exception as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{where} is not a valid evidence file: {reason.splitlines()[0]}") from None


# The gate, lineage and the documents of a release each read the evidence of all items, many times.
@lru_cache(maxsize=256)
def _parsed(raw: bytes) -> Evidence:
    document = json.loads(raw)
    _validator().validate(document)
    return Evidence.model_validate(document)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the evidence file, as published in `evidence.schema.json`."""
    schema = Evidence.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = sorted(
        {*schema.get("required", []), "schema", "measurements", "inputs", "artifacts"}
        | {"environment", "airflow"}
    )
    return schema
