import json
import os

import pytest
from benchmarks.contest.contest import Options

from benchmarks import pipeline
from tuneline.errors import UserError
from tuneline.stack.timings import breakdown

TASKS = [
    {
        "task_id": name,
        "state": "success",
        "try_number": 1,
        "start_date": f"2026-01-01T00:00:{start:02d}+00:00",
        "end_date": f"2026-01-01T00:00:{end:02d}+00:00",
    }
    for name, start, end in (("prepare_run", 0, 10), ("check_x", 10, 40))
]


def leave(folder, document):
    folder.mkdir(parents=True)
    path = folder / "timings.json"
    path.write_text(json.dumps(document))
    return path


def test_the_share_of_the_latest_run_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    old = breakdown([], None, setup=1.0, start=2.0)
    os.utime(leave(tmp_path / "runs" / "a", old), (1, 1))
    document = breakdown(TASKS, None, setup=1.0, start=2.0)
    leave(tmp_path / "runs" / "b", document)
    report = pipeline.run(Options(tmp_path, print))
    assert report.ratios == {"overhead_share": document["overhead_share"]}
    assert report.value("tuneline", "run_seconds") == 40.0
    assert report.value("tuneline", "airflow_start_seconds") == 2.0
    assert report.workload["tasks"] == 2


def test_without_a_run_there_is_an_error_and_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="make demo"):
        pipeline.run(Options(tmp_path, print))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "other/1"}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "timings.json"
    path.write_text(text)
    with pytest.raises(UserError, match="timings"):
        pipeline.run(Options(tmp_path, print, input=path))


def test_a_run_without_tasks_has_no_share(tmp_path):
    path = leave(tmp_path / "run", breakdown([], None, setup=1.0, start=2.0))
    with pytest.raises(UserError, match="no task ran"):
        pipeline.run(Options(tmp_path, print, input=path))
