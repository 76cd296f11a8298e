"""The verdict rules: worst opinion counts, criticals stop, waivers need a person."""

import json

import pytest
from tests.lab.runs import Lab, change_meta

from tuneline.evidence import Verdict, dump, measure
from tuneline.verdicts import check_item, checklist, status

OK = measure("m", 0, "rows", "<=", 0)
BAD = measure("m", 3, "rows", "<=", 0)
OTHER = measure("other", 3, "rows", "<=", 0)
WARNS = measure("w", 3, "rows", "<=", 0, on_breach="warn")
UNDECIDED = measure("m", 3, "rows", "<=", 0, on_breach="inconclusive")
MAY_BE_WORSE = measure(
    "worse_than_released_by", 0.22, "share", "<=", 0.02, on_breach="inconclusive"
)
LEFT = measure("pii_scrubbing.residual_rows", 1, "rows", "==", 0)
WRITTEN = measure("pii_scrubbing.written_out", 0.4, "share", "<=", 0.05)
UNCLEAR = WRITTEN.model_copy(update={"on_breach": "inconclusive"})
CRITICAL, RECOMMENDED, LAST = "deduplication", "determinism", "pii_scrubbing"


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


@pytest.mark.parametrize("profile", ["laptop", "production"])
@pytest.mark.parametrize(
    ("item", "found", "verdict", "stops", "because"),
    [
        (CRITICAL, [OK], "pass", False, "every limit holds"),
        (CRITICAL, [BAD], "fail", True, "m is 3, must be <= 0 rows"),
        # A recommended failure is carried and stops nothing.
        (RECOMMENDED, [BAD], "fail", False, "m is 3, must be <= 0 rows"),
        # An undecided limit stops a critical item in production alone; it lies between a warning
        # and a failure.
        (CRITICAL, [OK, UNDECIDED], "inconclusive", "in production", "m is 3"),
        (RECOMMENDED, [UNDECIDED], "inconclusive", False, "m is 3"),
        (CRITICAL, [WARNS, UNDECIDED], "inconclusive", "in production", "w is 3"),
        (CRITICAL, [UNDECIDED, BAD], "fail", True, "m is 3"),
        # A model that may be worse than the release does not take its place on a laptop either.
        ("holdout_performance", [OK, MAY_BE_WORSE], "inconclusive", True, "worse_than_released_by"),
    ],
)
def test_the_verdict_of_the_measurements(tmp_path, profile, item, found, verdict, stops, because):
    lab = Lab(tmp_path, {"profile": profile})
    lab.leave(item, {}, found)
    # Whatever its file says.
    stated = lab.run.find_evidence(item).model_copy(update={"verdict": Verdict.PASS})
    lab.run.store.put_bytes(lab.run.step_key(item, "evidence.json"), dump(stated))
    row = check_item(lab.run.uri, item)
    assert row.verdict == verdict
    assert row.stops_release == (profile == "production" if stops == "in production" else stops)
    assert because in row.because


@pytest.mark.parametrize(
    ("found", "second", "verdict", "because"),
    [
        (OK, {"gate": "fail"}, "fail", "the gate: 2 rows are missing"),
        (OK, {"gate": "pass"}, "pass", "every limit holds"),
        (BAD, {"gate": "pass"}, "fail", "m is 3"),
        (OK, {"final_audit": LEFT}, "fail", "the final audit: pii_scrubbing.residual_rows is 1"),
        (OK, {"extraction_audit": WRITTEN}, "fail", "the extraction audit: pii_scrubbing.written"),
        (OK, {"extraction_audit": UNCLEAR}, "inconclusive", "pii_scrubbing.written_out is 0.4"),
    ],
)
def test_gate_and_audits_can_only_make_it_worse(lab, found, second, verdict, because):
    lab.leave(LAST, {}, [found])
    lab.leave("schema_validation", {}, [OK])
    for step, opinion in second.items():
        if step == "gate":
            document = json.dumps({"verdict": opinion, "summary": "2 rows are missing"}).encode()
            lab.run.store.put_bytes(lab.run.step_key(LAST, "gate.json"), document)
        else:
            lab.leave(step, {}, [opinion])
    row = status(lab.run, LAST)
    assert (row.verdict, row.stops_release) == (verdict, verdict == "fail")
    assert because in row.because
    assert status(lab.run, "schema_validation").verdict == "pass"


@pytest.mark.parametrize(
    ("again", "says"),
    [
        ([BAD], "the gate: its audit table says the same"),
        ([BAD.model_copy(update={"value": 4})], "the gate: m is 4"),
        ([BAD, None], "the gate: m is 4"),
    ],
)
def test_a_gate_that_agrees_does_not_say_it_twice(lab, again, says):
    lab.leave(LAST, {}, [BAD])
    broken = [m and m.model_dump(mode="json") for m in again]
    gate = {"verdict": "fail", "summary": "m is 4", "broken": broken}
    lab.run.store.put_bytes(lab.run.step_key(LAST, "gate.json"), json.dumps(gate).encode())
    assert status(lab.run, LAST).because == f"m is 3, must be <= 0 rows; {says}"


def test_25_rows_and_what_stood_in_the_way(lab):
    lab.leave("schema_validation", {}, [BAD])
    rows = {row.item: row for row in checklist(lab.run)}
    assert len(rows) == 25
    assert rows["fallback"].verdict == "not_run"
    assert rows["fallback"].because == "schema_validation failed and stopped the run before it"
    assert rows["lineage"].stops_release


@pytest.mark.parametrize(
    ("item", "waiver", "by", "verdict"),
    [
        (RECOMMENDED, {"measurement": "m", "up_to": 3}, "alice", "waived"),
        (CRITICAL, {"measurement": "m", "up_to": 3}, "alice", "waived"),
        # Of another measurement, or not as far.
        (CRITICAL, {"measurement": "w", "up_to": 3}, "alice", "fail"),
        (CRITICAL, {"measurement": "m", "up_to": 2.9}, "alice", "fail"),
        (CRITICAL, {"measurement": "m", "up_to": True}, "alice", "fail"),
        # Accepted by no one.
        (RECOMMENDED, {"measurement": "m", "up_to": 3}, None, "fail"),
        # It does not invent a run.
        (LAST, {"measurement": "m", "up_to": 3}, "alice", "not_run"),
    ],
)
def test_a_waiver_accepts_one_measurement_up_to_a_value(tmp_path, item, waiver, by, verdict):
    waiver = {"item": item, "reason": "known and accepted", **waiver}
    lab = Lab(tmp_path, {"waivers": [waiver]})
    change_meta(lab, started_by=by)
    for step in (RECOMMENDED, CRITICAL):
        lab.leave(step, {}, [BAD])
    row = status(lab.run, item)
    assert row.verdict == verdict
    if verdict == "waived":
        assert row.because.startswith("waived by alice: m is 3, must be <= 0 rows, accepted up to")


@pytest.mark.parametrize(
    ("residual", "found", "broken", "verdict"),
    [
        (OK, WRITTEN, [], "fail"),
        (BAD, OK, [BAD], "waived"),
        (BAD, WRITTEN, [BAD], "fail"),
        # The gate found more than what is waived, another measurement, or a greater value.
        (BAD, OK, [BAD, None], "fail"),
        (BAD, OK, [BAD, WARNS], "warn"),
        (BAD, OK, [OTHER], "fail"),
        (BAD, OK, [BAD.model_copy(update={"value": 4})], "fail"),
    ],
)
def test_a_waiver_of_the_scrubber_accepts_no_failure_of_gate_or_audit(
    tmp_path, residual, found, broken, verdict
):
    """Waived because addresses are needed; the extraction audit then finds 40 % written out."""
    waiver = {"item": LAST, "measurement": "m", "up_to": 3, "reason": "addresses are needed"}
    lab = Lab(tmp_path, {"waivers": [waiver]})
    change_meta(lab, started_by="alice")
    lab.leave(LAST, {}, [residual])
    lab.leave("extraction_audit", {}, [found])
    gate = {
        "verdict": "fail" if broken else "pass",
        "summary": "rows",
        "broken": [m and m.model_dump(mode="json") for m in broken],
    }
    lab.run.store.put_bytes(lab.run.step_key(LAST, "gate.json"), json.dumps(gate).encode())
    assert status(lab.run, LAST).verdict == verdict
