import json

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.evaluation import HoldoutPart, holdout_part
from tuneline.catalogue import Phase
from tuneline.evidence import Record, dump
from tuneline.stack import timings


def task(name, start, end, state="success", ready=None):
    stamp = "2026-10-18T00:{:02d}:{:02d}Z".format
    return {
        "task_id": name,
        "state": state,
        "try_number": 1,
        "scheduled_when": stamp(*divmod(ready if ready is not None else start, 60)),
        "start_date": stamp(*divmod(start, 60)),
        "end_date": stamp(*divmod(end, 60)),
    }


@pytest.fixture
def run(tmp_path):
    made = Lab(tmp_path, {}).run
    record = Record(
        step="train",
        phase=Phase.TRAINING,
        summary="s",
        started_at="2026-10-18T00:00:00Z",
        seconds=30,
    )
    made.store.put_bytes(made.step_key("train", "record.json"), dump(record))
    return made


def test_time_is_split_into_work_pods_waiting_and_checks(run, tmp_path):
    tasks = [
        task("prepare_run", 0, 2),
        task("train", 4, 39, ready=3),
        task("check_train", 40, 41),
        task("review_pairs", 41, 41, state="skipped"),
        {**task("promote", 0, 0, state=None), "start_date": None, "end_date": None},
    ]
    document = timings.breakdown(tasks, run, setup=1.5, start=12)
    assert document["run_seconds"] == 41
    assert document["work_seconds"] == 30
    assert document["pod_seconds"] == 5
    assert document["queued_seconds"] == 1
    assert document["worker_task_seconds"] == 3
    assert document["overhead_share"] == pytest.approx(1 - 30 / 41, abs=1e-3)
    assert [row["task"] for row in document["tasks"]] == ["prepare_run", "train", "check_train"]
    path = timings.write(document, tmp_path / "runs" / "run-1")
    assert json.loads(path.read_text()) == document
    assert "work 30 s; pods 5 s, waiting 1 s, checks 3 s (3.0 s for each of 3 tasks)" in (
        timings.summary(document)
    )


def test_the_pods_of_a_sweep_and_of_shards_work_too(run):
    """They are neither items nor helper steps; their time is not Airflow's."""
    key = run.key("work", "sweep", "runs", "r8", "trial.json")
    run.store.put_bytes(key, json.dumps({"r": 8, "seconds": 25.5}).encode())
    tasks = [
        {**task("sweep", 0, 30), "map_index": 0, "rendered_map_index": "r = 8"},
        # It broke before it left a result.
        {**task("sweep", 30, 32, state="failed"), "map_index": 1, "rendered_map_index": "r = 16"},
    ]
    document = timings.breakdown(tasks, run, setup=0, start=0)
    assert [row["map_index"] for row in document["tasks"]] == [0, 1]
    assert document["work_seconds"] == 25.5
    assert document["pod_seconds"] == 4.5
    assert document["worker_task_seconds"] == 2
    part = HoldoutPart(of=(run.uri, "0" * 64, 1, 2), answers={}, seconds=6.5)
    holdout_part(1).put(run, part)
    shards = [{**task("answer_holdout", 40, 50), "map_index": number} for number in (0, 1)]
    assert timings.breakdown(shards, run, setup=0, start=0)["work_seconds"] == 6.5
    without = timings.breakdown(tasks[:1], None, setup=0, start=0)
    assert without["work_seconds"] == 0


def test_a_run_that_never_began_has_no_share():
    document = timings.breakdown([], None, setup=0, start=0)
    assert document["overhead_share"] is None
    assert "0 tasks" in timings.summary(document)
