"""The judgement of a task reads real evidence from a real store."""

import pytest
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.runs import Lab

from tuneline import verdicts
from tuneline.errors import RetryableError
from tuneline.evidence import Verdict, measure
from tuneline_airflow.failures import judge


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


def leave(lab, item, verdict):
    faults = {Verdict.PASS: 0, Verdict.FAIL: 1}[verdict]
    lab.leave(item, {}, [measure("faults", faults, "rows", "<=", 0)])


def test_a_pass_goes_on(lab):
    leave(lab, "deduplication", Verdict.PASS)
    judge(lab.run.uri, ["deduplication"])


def test_a_critical_failure_stops_the_run_with_its_reason(lab):
    leave(lab, "deduplication", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication \(critical\).*faults is 1"):
        judge(lab.run.uri, ["deduplication"])


def test_a_recommended_failure_goes_on(lab, capsys):
    leave(lab, "determinism", Verdict.FAIL)
    judge(lab.run.uri, ["determinism"])
    assert "determinism: fail" in capsys.readouterr().out


def test_missing_evidence_of_a_critical_item_stops_the_run(lab):
    with pytest.raises(AirflowFailException, match="left no evidence"):
        judge(lab.run.uri, ["deduplication"])


def test_a_second_look_names_every_item_that_stops(lab):
    leave(lab, "schema_validation", Verdict.PASS)
    leave(lab, "deduplication", Verdict.FAIL)
    leave(lab, "pii_scrubbing", Verdict.FAIL)
    with pytest.raises(AirflowFailException, match=r"deduplication.*; pii_scrubbing"):
        judge(lab.run.uri, ["schema_validation", "deduplication", "pii_scrubbing"])


def test_a_missing_run_is_one_sentence(tmp_path):
    with pytest.raises(AirflowFailException, match="there is no run at"):
        judge(f"{tmp_path.as_uri()}/runs/none", ["deduplication"])


@pytest.mark.parametrize("outages", [2, 3])
def test_a_store_that_is_away_for_a_moment_is_asked_again(lab, monkeypatch, outages):
    """Whatever fails here has the pod do its hours of work once more."""
    left = ["the store is away"] * outages
    check_item = verdicts.check_item

    def look(*arguments):
        if left:
            raise RetryableError(left.pop())
        return check_item(*arguments)

    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", "0.01")
    monkeypatch.setattr(verdicts, "check_item", look)
    leave(lab, "determinism", Verdict.PASS)
    if outages < 3:
        judge(lab.run.uri, ["determinism"])
    else:
        with pytest.raises(RetryableError, match="away"):
            judge(lab.run.uri, ["determinism"])
