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


@pytest.mark.parametrize(
    ("left", "stops"),
    [
        ({"deduplication": Verdict.PASS}, None),
        ({"deduplication": Verdict.FAIL}, r"deduplication \(critical\).*faults is 1"),
        ({"determinism": Verdict.FAIL}, None),
        ({"deduplication": None}, "left no evidence"),
        # An audit names every item that stops.
        (
            {
                "schema_validation": Verdict.PASS,
                "deduplication": Verdict.FAIL,
                "pii_scrubbing": Verdict.FAIL,
            },
            "^deduplication.*; pii_scrubbing",
        ),
    ],
)
def test_a_critical_failure_alone_stops_the_run_with_its_reason(lab, capsys, left, stops):
    for item, verdict in left.items():
        if verdict is not None:
            leave(lab, item, verdict)
    if stops is None:
        judge(lab.run.uri, list(left))
        ((item, verdict),) = left.items()
        assert f"{item}: {verdict}" in capsys.readouterr().out
    else:
        with pytest.raises(AirflowFailException, match=stops):
            judge(lab.run.uri, list(left))


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
