"""The checks read real evidence from a real store."""

import pytest
from airflow.sdk.exceptions import AirflowFailException

from tuneline.catalogue import get_item
from tuneline.config import build_config
from tuneline.evidence import Evidence, Verdict, dump, measure
from tuneline.run import Run, now
from tuneline_airflow.checks import _check


@pytest.fixture
def run(tmp_path):
    config = build_config({"data": {"source": "x.jsonl"}})
    return Run.create(tmp_path.as_uri(), "run-1", config, {})


def leave(run, item_id, verdict):
    item = get_item(item_id)
    value = {Verdict.PASS: 0, Verdict.FAIL: 1}[verdict]
    evidence = Evidence(
        item=item.id,
        phase=item.phase,
        severity=item.severity,
        verdict=verdict,
        summary="seen",
        measurements=[measure("faults", value, "rows", "<=", 0)],
        started_at=now(),
        seconds=0.1,
    )
    run.store.put_bytes(run.step_key(item.id, "evidence.json"), dump(evidence))


def test_a_pass_goes_on(run):
    leave(run, "deduplication", Verdict.PASS)
    _check(run.uri, ["deduplication"])


def test_a_critical_failure_stops_the_run_with_its_reason(run):
    leave(run, "deduplication", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication \(critical\).*faults is 1"):
        _check(run.uri, ["deduplication"])


def test_a_recommended_failure_goes_on(run, capsys):
    leave(run, "determinism", Verdict.FAIL)
    _check(run.uri, ["determinism"])
    assert "determinism: fail" in capsys.readouterr().out


def test_missing_evidence_of_a_critical_item_stops_the_run(run):
    with pytest.raises(AirflowFailException, match="left no evidence"):
        _check(run.uri, ["deduplication"])


def test_a_second_look_names_every_item_that_stops(run):
    leave(run, "schema_validation", Verdict.PASS)
    leave(run, "deduplication", Verdict.FAIL)
    leave(run, "pii_scrubbing", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication.*; pii_scrubbing"):
        _check(run.uri, ["schema_validation", "deduplication", "pii_scrubbing"])


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(AirflowFailException, match="there is no run at"):
        _check(f"{tmp_path.as_uri()}/runs/none", ["deduplication"])
