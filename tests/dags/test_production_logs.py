"""`production_logs` in Airflow: a day is announced once it is curated and holds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.logged import DAY, MODEL

from tuneline.evidence import Verdict
from tuneline.governance.production.curated_days import CurationEvidence, publish
from tuneline.store import open_store

ROOT = Path(__file__).parents[2]


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
    chosen = {"store": (tmp_path / "store").as_uri(), "day": DAY.isoformat(), "asked_by": None}
    ti = SimpleNamespace(xcom_pull=lambda task_ids: {"choose_day": chosen}[task_ids])
    context = {"ti": ti}
    monkeypatch.setitem(scope, "get_current_context", lambda: context)
    monkeypatch.setitem(scope, "leave_note", lambda _, note: notes.append(note))
    return task.python_callable, notes


def test_a_curated_day_is_announced_unless_it_fails(curated, check):
    announce, notes = check
    with pytest.raises(AirflowFailException, match="was not curated"):
        list(announce())
    curated(Verdict.WARN)
    (metadata,) = announce()
    assert metadata.extra == {"day": DAY.isoformat(), "asked_by": None}
    curated(Verdict.FAIL)
    with pytest.raises(AirflowFailException, match="a day"):
        list(announce())
    assert notes == [f"{DAY}: a day"] * 2
