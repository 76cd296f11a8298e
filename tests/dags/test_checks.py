"""The checks read real evidence from a real store."""

import pytest
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.runs import Lab

from tuneline.evidence import Verdict, measure
from tuneline_airflow.checks import EvidenceCheck


def check(run_uri, item_ids):
    """Carry out the task on a run."""
    task = EvidenceCheck(task_id="check", item_ids=item_ids)
    task.run_uri = run_uri
    task.execute({})


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def leave(lab, item, verdict):
    faults = {Verdict.PASS: 0, Verdict.FAIL: 1}[verdict]
    lab.leave(item, {}, [measure("faults", faults, "rows", "<=", 0)])


def test_a_pass_goes_on(lab):
    leave(lab, "deduplication", Verdict.PASS)
    check(lab.run.uri, ["deduplication"])


def test_a_critical_failure_stops_the_run_with_its_reason(lab):
    leave(lab, "deduplication", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication \(critical\).*faults is 1"):
        check(lab.run.uri, ["deduplication"])


def test_a_recommended_failure_goes_on(lab, capsys):
    leave(lab, "determinism", Verdict.FAIL)
    check(lab.run.uri, ["determinism"])
    assert "determinism: fail" in capsys.readouterr().out


def test_missing_evidence_of_a_critical_item_stops_the_run(lab):
    with pytest.raises(AirflowFailException, match="left no evidence"):
        check(lab.run.uri, ["deduplication"])


def test_a_second_look_names_every_item_that_stops(lab):
    leave(lab, "schema_validation", Verdict.PASS)
    leave(lab, "deduplication", Verdict.FAIL)
    leave(lab, "pii_scrubbing", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication.*; pii_scrubbing"):
        check(lab.run.uri, ["schema_validation", "deduplication", "pii_scrubbing"])


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(AirflowFailException, match="there is no run at"):
        check(f"{tmp_path.as_uri()}/runs/none", ["deduplication"])
