"""`production_logs` in Airflow: a day is announced once it is curated and holds."""

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.logged import DAY, MODEL

from tuneline.evidence import Verdict
from tuneline.governance.production.curated_days import CurationEvidence, publish
from tuneline.store import open_store

ROOT = Path(__file__).parents[2]


class Instance:
    """The task instance of a run, as far as the tasks read it."""

    def __init__(self, uri):
        self.chosen = {"store": uri, "day": DAY.isoformat(), "asked_by": None}

    def xcom_pull(self, task_ids):
        assert task_ids == "choose_day"
        return self.chosen


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def curated(store, tmp_path):
    """Put the evidence of a curated day with a verdict into a store."""

    def make(verdict):
        evidence = CurationEvidence(
            model=MODEL,
            day=DAY.isoformat(),
            verdict=verdict,
            summary="a day",
            requests_in=4,
            rows_kept=4,
        )
        return publish(store, MODEL, DAY, evidence, tmp_path)

    return make


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The task of a model's DAG, in a run whose notes are kept in a list."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(
        "settings: {data: {source: s3://bucket/a.jsonl}}\n"
    )
    monkeypatch.setenv("TUNELINE_MODELS", str(tmp_path / "models"))
    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    task = bag.dags[f"production_logs__{MODEL}"].get_task("check_day")
    # A day that does not add up fails in its pod, so that nothing is announced.
    assert task.upstream_task_ids == {"curate"}
    notes = []
    scope = task.python_callable.__globals__
    context = {"ti": Instance((tmp_path / "store").as_uri())}
    monkeypatch.setitem(scope, "get_current_context", lambda: context)
    monkeypatch.setitem(scope, "leave_note", lambda _, note: notes.append(note))
    return task.python_callable, notes


def test_a_curated_day_is_announced(curated, check):
    announce, notes = check
    curated(Verdict.WARN)
    (metadata,) = announce()
    assert metadata.extra == {"day": DAY.isoformat(), "asked_by": None}
    assert notes == [f"{DAY}: a day"]


def test_a_day_that_fails_is_not_announced_and_says_so(curated, check):
    announce, notes = check
    curated(Verdict.FAIL)
    with pytest.raises(AirflowFailException, match="a day"):
        list(announce())
    assert notes == [f"{DAY}: a day"]


def test_a_day_that_was_not_curated_fails(store, check):
    with pytest.raises(AirflowFailException, match="was not curated"):
        list(check[0]())
