"""`production_logs` in Airflow: a faulty day fails its gate and is not announced."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
from tests.lab.logged import DAY, MODEL

from tuneline.evidence import Verdict
from tuneline.governance.production import tables
from tuneline.governance.production.curated_day import (
    CURATED,
    REJECTED,
    CurationEvidence,
    StoredFile,
    StratumCount,
    publish,
)
from tuneline.store import open_store, sha256_file

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
    """Put a curated day of four requests into a store, made to state any number of requests."""

    def make(requests_in):
        rows = [
            {
                "request_id": f"req-{n}",
                "time": datetime.combine(DAY, datetime.min.time(), UTC),
                "seen": 1,
                "weight": 1.0,
                "novelty": 0.5,
                "stratum": "random",
                "in_review": True,
                "inclusion_probability": 1.0,
            }
            for n in range(4)
        ]
        pq.write_table(pa.Table.from_pylist(rows, tables.CURATED), tmp_path / CURATED)
        tables.write_rejected(tmp_path / REJECTED, [])
        files = [
            StoredFile(
                name=name,
                sha256=sha256_file(tmp_path / name),
                bytes=(tmp_path / name).stat().st_size,
                rows=count,
            )
            for name, count in ((CURATED, 4), (REJECTED, 0))
        ]
        evidence = CurationEvidence(
            model=MODEL,
            day=DAY.isoformat(),
            verdict=Verdict.PASS,
            summary="a day",
            requests_in=requests_in,
            rows_kept=4,
            strata={"random": StratumCount(rows=4, in_review=4, inclusion_probability=1.0)},
            files=files,
        )
        return publish(store, MODEL, DAY, evidence, tmp_path)

    return make


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The task of a model's DAG, in a run whose notes are kept in a list."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(
        "settings: {data: {source: s3://bucket/a.jsonl}}\n"
    )
    monkeypatch.setenv("TUNELINE_MODELS", str(tmp_path / "models"))
    bag = DagBag(str(ROOT / "dags"))
    assert bag.import_errors == {}
    task = bag.dags[f"production_logs__{MODEL}"].get_task("gate_day")
    assert task.downstream_task_ids == {"check_day"}
    notes = []
    scope = task.python_callable.__globals__
    context = {"ti": Instance((tmp_path / "store").as_uri())}
    monkeypatch.setitem(scope, "get_current_context", lambda: context)
    monkeypatch.setitem(scope, "leave_note", lambda _, note: notes.append(note))
    return task.python_callable, notes


def test_a_day_that_adds_up_passes(curated, gate):
    check, notes = gate
    day = curated(requests_in=4)
    check()
    assert notes == []
    assert (day.store.root / day.prefix / "gate.json").is_file()


def test_a_day_that_states_other_sizes_fails_and_says_so(curated, gate):
    curated(requests_in=9)
    check, notes = gate
    with pytest.raises(AirflowFailException, match="row count to equal"):
        check()
    assert "requests" in notes[0]


def test_a_day_that_was_not_curated_fails(store, gate):
    with pytest.raises(AirflowFailException, match="was not curated"):
        gate[0]()
