"""The verdict rules: worst opinion counts, criticals stop, waivers need a person."""

import json

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.answers import waivers_sha256
from tuneline.evidence import measure
from tuneline.verdicts import check_item, checklist, status

OK = measure("m", 0, "rows", "<=", 0)
BAD = measure("m", 3, "rows", "<=", 0)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def _gate(lab, item, verdict, summary="x"):
    document = {"verdict": verdict, "summary": summary}
    lab.run.store.put_bytes(lab.run.step_key(item, "gate.json"), json.dumps(document).encode())


def _waive(lab, **waiver):
    document = {"waivers": [{"reason": "known and accepted", **waiver}]}
    lab.run.store.put_bytes(lab.run.key("waivers.json"), json.dumps(document).encode())


def test_clean_item_passes(lab):
    lab.leave("deduplication", {}, [OK])
    row = check_item(lab.run.uri, "deduplication")
    assert row.verdict == "pass"
    assert not row.stops_release


def test_broken_limit_says_which(lab):
    lab.leave("deduplication", {}, [BAD])
    row = status(lab.run, "deduplication")
    assert row.verdict == "fail"
    assert row.stops_release
    assert row.because == "m is 3, must be <= 0 rows"


def test_recommended_failure_is_carried_and_stops_nothing(lab):
    lab.leave("determinism", {}, [BAD])
    row = status(lab.run, "determinism")
    assert row.verdict == "fail"
    assert not row.stops_release


UNDECIDED = measure("m", 3, "rows", "<=", 0, on_breach="inconclusive")


def test_an_undecided_limit_stops_a_critical_item_in_production_alone(lab, tmp_path):
    strict = Lab(tmp_path / "strict", {"profile": "production"})
    for bench, stops in ((lab, False), (strict, True)):
        bench.leave("deduplication", {}, [OK, UNDECIDED])
        bench.leave("determinism", {}, [UNDECIDED])
        row = status(bench.run, "deduplication")
        assert (row.verdict, row.stops_release) == ("inconclusive", stops)
        assert "m is 3" in row.because
        assert set(row.as_dict()) == {"item", "phase", "severity", "verdict", "summary", "because"}
        assert not status(bench.run, "determinism").stops_release


def test_an_undecided_limit_lies_between_a_warning_and_a_failure(lab):
    warning = measure("w", 3, "rows", "<=", 0, on_breach="warn")
    lab.leave("deduplication", {}, [warning, UNDECIDED])
    assert status(lab.run, "deduplication").verdict == "inconclusive"
    lab.leave("deduplication", {}, [UNDECIDED, BAD])
    assert status(lab.run, "deduplication").verdict == "fail"


def test_the_gate_can_only_make_it_worse(lab):
    lab.leave("deduplication", {}, [OK])
    _gate(lab, "deduplication", "fail", "2 rows are missing")
    row = status(lab.run, "deduplication")
    assert row.verdict == "fail"
    assert "the gate: 2 rows are missing" in row.because
    _gate(lab, "deduplication", "pass")
    lab.leave("pii_scrubbing", {}, [BAD])
    _gate(lab, "pii_scrubbing", "pass")
    assert status(lab.run, "deduplication").verdict == "pass"
    assert status(lab.run, "pii_scrubbing").verdict == "fail"


def test_the_final_audit_can_turn_an_item(lab):
    lab.leave("pii_scrubbing", {}, [OK])
    lab.leave("schema_validation", {}, [OK])
    lab.leave("final_audit", {}, [measure("pii_scrubbing.residual_rows", 1, "rows", "==", 0)])
    assert status(lab.run, "pii_scrubbing").verdict == "fail"
    assert status(lab.run, "schema_validation").verdict == "pass"


def test_the_extraction_audit_can_turn_an_item(lab):
    lab.leave("pii_scrubbing", {}, [OK])
    share = measure("pii_scrubbing.written_out", 0.4, "share", "<=", 0.05)
    lab.leave("extraction_audit", {}, [share])
    row = status(lab.run, "pii_scrubbing")
    assert (row.verdict, row.stops_release) == ("fail", True)
    assert "the extraction audit: pii_scrubbing.written_out is 0.4" in row.because
    undecided = measure(share.name, 0.4, "share", "<=", 0.05, on_breach="inconclusive")
    lab.leave("extraction_audit", {}, [undecided])
    assert status(lab.run, "pii_scrubbing").verdict == "inconclusive"


def test_25_rows_and_what_stood_in_the_way(lab):
    lab.leave("schema_validation", {}, [BAD])
    rows = {row.item: row for row in checklist(lab.run)}
    assert len(rows) == 25
    assert rows["fallback"].verdict == "not_run"
    assert rows["fallback"].because == "schema_validation failed and stopped the run before it"
    assert rows["lineage"].stops_release


def test_waiver_by_a_person_counts(lab):
    lab.leave("determinism", {}, [BAD])
    _waive(lab, item="determinism", by="alice")
    row = status(lab.run, "determinism")
    assert row.verdict == "waived"
    assert "waived by alice: known and accepted (would be fail)" in row.because


@pytest.mark.parametrize("by", [None, ""])
def test_waiver_by_nobody_counts_for_nothing(lab, by):
    lab.leave("determinism", {}, [BAD])
    _waive(lab, item="determinism", by=by)
    assert status(lab.run, "determinism").verdict == "fail"


def _approved(lab):
    about = waivers_sha256(lab.run)
    answer = {"subject": "approve_waivers", "decision": "Approve", "by": "bob", "at": "x"}
    return {**answer, "about": about}


def test_critical_waiver_needs_an_approval(lab):
    lab.leave("deduplication", {}, [BAD])
    _waive(lab, item="deduplication", by="alice", approval=None)
    assert status(lab.run, "deduplication").stops_release
    _waive(lab, item="deduplication", by="alice", approval=_approved(lab))
    assert status(lab.run, "deduplication").verdict == "waived"
    _waive(lab, item="deduplication", by="alice", approval={**_approved(lab), "about": "0" * 64})
    assert status(lab.run, "deduplication").stops_release


def test_a_waiver_does_not_invent_a_run(lab):
    _waive(lab, item="deduplication", by="alice", approval=_approved(lab))
    assert status(lab.run, "deduplication").verdict == "not_run"
