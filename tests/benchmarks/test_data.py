import json

import pytest
from benchmarks.contest.contest import Options
from benchmarks.contest.trial import conduct
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.support_chat import make_conversations
from tests.lab.data_runs import make_base

from benchmarks import data
from tuneline.catalogue import DATA_ORDER
from tuneline.errors import TunelineError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("base")))


def job(tmp_path, rows):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({**data.SETTINGS, "max_tokens": 2048}))
    return {
        "source": write_lines(tmp_path / "rows.jsonl", rows),
        "rows": len(rows),
        "settings": str(settings),
        "out": str(tmp_path / "out"),
    }


def test_every_step_has_its_speed(tmp_path, base, monkeypatch):
    monkeypatch.setattr(data, "BASE_MODEL", base)
    monkeypatch.setattr(
        data.Contest, "run", lambda _, __, job: conduct(data.prepare_rows(dict(job)))
    )
    report = data.run(Options(tmp_path, lambda _: None, runs=1, rows=200))
    assert report.workload["rows"] == 200
    for step in (*DATA_ORDER, "final_audit"):
        assert report.value("tuneline", f"{step}_rows_per_s") > 0
    whole = report.value("tuneline", "seconds")
    assert whole > report.value("tuneline", "gates_and_files_seconds") > 0
    assert report.value("tuneline", "rows_per_s") == pytest.approx(200 / whole, rel=1e-3)
    assert 0.5 < report.value("tuneline", "rows_kept") <= 1


def test_rows_without_a_dataset_are_no_measurement(tmp_path, base, monkeypatch):
    monkeypatch.setattr(data, "BASE_MODEL", base)
    turns = make_conversations(1)[0]
    trial = data.prepare_rows(job(tmp_path, [{"messages": turns[:2]}] * 20))
    with pytest.raises(TunelineError, match="made no dataset"):
        conduct(trial)
