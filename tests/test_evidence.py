"""Evidence: verdicts follow from measurements, files follow the published schema."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from tuneline.errors import UserError
from tuneline.evidence import (
    SCHEMA_FILE,
    Evidence,
    Record,
    Verdict,
    conclude,
    dump,
    holds,
    json_schema,
    load_evidence,
    measure,
    worse,
)


def _evidence(**changes):
    fields = {
        "item": "deduplication",
        "phase": "data",
        "severity": "critical",
        "verdict": "pass",
        "summary": "s",
        "measurements": [measure("a", 0, "rows", "<=", 0)],
        "started_at": "2026-01-01T00:00:00Z",
        "seconds": 0.1,
    }
    return Evidence(**{**fields, **changes})


@pytest.mark.parametrize(
    ("value", "rule", "limit", "ok"),
    [
        (1, "<=", 1, True),
        (1.1, "<=", 1, False),
        (2, ">", 1, True),
        ("a", "in", ["a", "b"], True),
        ("c", "in", ["a", "b"], False),
        (True, "==", True, True),
        (math.nan, "<=", 1, False),
        (math.nan, "!=", 1, False),
        (2, "!=", 1, True),
        (None, "<=", 1, False),
        (np.float64(0.5), ">=", 0.5, True),
    ],
)
def test_rules(value, rule, limit, ok):
    assert measure("m", value, "u", rule, limit).ok is ok


def test_verdict_is_the_worst_that_a_broken_rule_asks_for():
    good = measure("a", 1, "u", "<=", 1)
    warns = measure("b", 2, "u", "<=", 1, on_breach="warn")
    fails = measure("c", 2, "u", "<=", 1)
    assert conclude([good]) == Verdict.PASS
    assert conclude([good, warns]) == Verdict.WARN
    assert conclude([good, warns, fails]) == Verdict.FAIL


def test_a_tolerance_tighter_than_the_noise_is_refused():
    with pytest.raises(UserError, match="tighter than the measured noise"):
        measure("drop", 0.01, "share", "<=", 0.02, noise=0.05, tolerance=0.02)
    assert measure("drop", 0.01, "share", "<=", 0.1, noise=0.05, tolerance=0.1).ok


@pytest.mark.parametrize(("value", "limit"), [(1, True), (1, "2"), (1, None), (1, [2]), ("1", 2)])
def test_what_has_no_order_is_not_compared(value, limit):
    with pytest.raises(UserError, match="needs a number"):
        holds(value, "<=", limit)


@pytest.mark.parametrize("verdict", ["pass", "warn", "fail"])
def test_a_verdict_without_a_measurement_does_not_exist(verdict):
    with pytest.raises(ValidationError, match="without a measurement"):
        _evidence(verdict=verdict, measurements=[measure("informs", 1, "u")])
    assert _evidence(verdict="not_applicable", measurements=[]).verdict == "not_applicable"


def test_dump_and_load():
    evidence = _evidence()
    assert load_evidence(dump(evidence), "here") == evidence
    # JSON has no word for it.
    evidence = _evidence(verdict="fail", measurements=[measure("loss", math.nan, "nats", "<=", 9)])
    assert b'"nan"' in dump(evidence)


def test_the_order_of_the_keys_is_the_published_one():
    findings = ["summary", "measurements", "inputs", "artifacts", "started_at", "seconds"]
    findings += ["environment", "airflow", "reads"]
    head = ["schema", "item", "phase", "severity", "verdict"]
    assert list(json.loads(dump(_evidence()))) == [*head, *findings]
    record = Record(step="train", phase="training", summary="s", started_at="now", seconds=0.1)
    assert list(json.loads(dump(record))) == ["schema", "step", "phase", *findings]
    measurement = ["name", "value", "unit", "rule", "limit", "noise", "ok", "on_breach"]
    assert list(json.loads(dump(_evidence()))["measurements"][0]) == measurement


def test_a_damaged_file_is_named():
    document = json.loads(dump(_evidence()))
    document["verdict"] = "great"
    with pytest.raises(UserError, match=r"x/evidence\.json is not a valid evidence file"):
        load_evidence(json.dumps(document).encode(), "x/evidence.json")
    with pytest.raises(UserError, match="not a valid evidence file"):
        load_evidence(b"{", "x")


def test_the_published_schema_is_the_models():
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema()


def test_worse():
    assert worse(Verdict.PASS, Verdict.FAIL) == Verdict.FAIL
    assert worse(Verdict.WARN, Verdict.PASS) == Verdict.WARN
    assert worse(Verdict.NOT_APPLICABLE, Verdict.PASS) == Verdict.PASS
