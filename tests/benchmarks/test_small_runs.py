"""One small run of the benchmarks of data, tokens, drift, cold starts and the pipeline."""

import json
import os
import random

import pytest
from benchmarks.contest.contest import Options
from benchmarks.contest.trial import conduct, read_lines, write_lines
from benchmarks.workloads.input_rows import read_conversations, read_texts
from benchmarks.workloads.support_chat import make_conversations
from tests.lab.data_runs import make_base
from tests.lab.tiny_models import make_tokenizer

from benchmarks import coldstart, data, drift, pipeline, tokens
from tuneline.catalogue import DATA_ORDER
from tuneline.deployment.cold_start import Start, WarmStart
from tuneline.errors import TunelineError, UserError
from tuneline.stack.timings import breakdown

TURNS = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "There."}]
START = Start(load_seconds=1.0, first_ttft=0.8, later_ttft=0.2, failed=0)
WARM = WarmStart(True, True, 2.0, 0.2, 0.1, 0)
WORDS = "track cancel return refund parcel order invoice card address account today monday".split()


def jsonl(path, values):
    write_lines(path, values)
    return path


def test_texts_come_from_conversations_and_from_text_fields_of_any_format(tmp_path):
    values = [{"messages": TURNS}, {"text": "a"}, {"full_text": "b"}, {"other": "c"}, {"text": " "}]
    path = jsonl(tmp_path / "rows.jsonl", values)
    assert read_texts(path, None) == ["Where is it?", "a", "b"]
    assert read_texts(path, 2) == ["Where is it?", "a"]
    assert read_conversations(jsonl(path, [{"messages": TURNS}, {"messages": TURNS[:1]}]), 9) == [
        TURNS
    ]
    for name, content, texts in (
        ("rows.csv", b"text,category\nhello,1\nbye,2\n", ["hello", "bye"]),
        ("rows.json", b'[{"full_text": "x"}]', ["x"]),
        ("part.jsonl", b'{"text": "a"}\n{"text": "\xff"}\nnot json\n{"text": "b"}\n', ["a", "b"]),
    ):
        (tmp_path / name).write_bytes(content)
        assert read_texts(tmp_path / name, None) == texts


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("rows.jsonl", '{"a": 1}\n', read_texts),
        ("rows.jsonl", '{"text": "no conversation"}\n', read_conversations),
        ("rows.json", "{", read_texts),
        ("rows.json", "{}", read_texts),
        ("rows.txt", "text", read_texts),
    ],
)
def test_a_file_without_rows_is_refused_by_name(tmp_path, name, content, read):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=name):
        read(path, None)


def test_made_conversations_are_the_same_for_a_seed():
    assert make_conversations(20) == make_conversations(20)
    assert len({row[1]["content"] for row in make_conversations(50)}) > 45


@pytest.mark.long
def test_every_step_of_the_data_phase_has_its_speed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BASE_MODEL", str(make_base(tmp_path / "base")))
    monkeypatch.setattr(data, "SETTINGS", {**data.SETTINGS, "max_tokens": 2048})
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
    # Rows without a dataset are no measurement.
    unanswered = jsonl(tmp_path / "unanswered.jsonl", [{"messages": TURNS[:1]}] * 20)
    job = {"source": str(unanswered), "rows": 20, "settings": str(tmp_path / "settings.json")}
    with pytest.raises(TunelineError, match="made no dataset"):
        conduct(data.prepare_rows({**job, "out": str(tmp_path / "none")}))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    make_tokenizer("smollm", folder / "model")
    return tokens.prepare(folder / "model", make_conversations(150), folder)[1]


@pytest.mark.parametrize("trial", [tokens.audit, tokens.raw])
def test_every_system_counts_what_the_slow_way_counts(job, trial, tmp_path):
    sample = conduct(trial(job))
    assert sample.items == 150
    assert sample.scores == {"equal_counts": 1.0}
    reference = read_lines(job["reference"])
    reference[3] += 1
    wrong = {**job, "reference": write_lines(tmp_path / "reference.jsonl", reference)}
    assert conduct(trial(wrong)).scores["equal_counts"] == pytest.approx(149 / 150)


def test_drift_in_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "YEAR", 5)
    rng = random.Random(1)
    rows = [{"prompt": f"please {' '.join(rng.choices(WORDS, k=7))}"} for _ in range(400)]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    report = drift.run(Options(tmp_path, lambda _: None, input=source, runs=1))
    assert report.value("tuneline", "detection_5pct_out_of_scope") is not None
    assert report.value("tuneline", "false_alarms_per_window") == 0
    assert report.value("tuneline", "false_alarms_per_year") == 0
    assert report.value("tuneline", "seconds_per_window") < 2
    assert report.workload["unseen"] == 100


def test_the_public_sets_are_read_and_a_missing_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="TUNELINE_BENCH_DATA"):
        drift.public_case(drift.data_folder(None), 500)
    assert drift.data_folder(tmp_path / "banking77" / "train.csv") == tmp_path
    (tmp_path / "clinc_oos").mkdir()
    (tmp_path / "banking77").mkdir()
    parts = {
        part: [["pay it", "pay_bill"], ["hi", "greeting"]] for part in ("train", "val", "test")
    }
    oos = {f"oos_{part}": [["who am i", "oos"]] for part in parts}
    (tmp_path / "clinc_oos" / "data_full.json").write_text(json.dumps({**parts, **oos}))
    for part, count in (("train", 1200), ("test", 30)):
        lines = "".join(f"row {number},card\n" for number in range(count))
        (tmp_path / "banking77" / f"{part}.csv").write_text("text,category\n" + lines)
    case = drift.public_case(tmp_path, 500)
    assert (len(case.train), len(case.validation), len(case.unseen)) == (200, 1000, 30)
    planted = {name: {row.text for row in rows} for name, (_, rows) in case.plants.items()}
    assert planted["detection_5pct_out_of_scope"] == {"who am i"}
    assert planted["detection_10pct_neighbour"] == {"pay it"}


def test_a_failed_request_or_a_start_that_was_not_warm_is_no_measurement():
    found = {
        (r.system, r.metric): r.value for r in coldstart.start_results([START] * 3, [WARM] * 3, "1")
    }
    assert found[coldstart.COLD, "first_ttft"] == 0.8
    assert found[coldstart.WARMED, "first_ttft"] == 0.2
    assert found[coldstart.WARMED, "seconds_to_ready"] == 2.0
    with pytest.raises(TunelineError, match="failed"):
        coldstart.start_results([Start(1.0, 0.8, 0.2, 1)], [WARM], "1")
    with pytest.raises(TunelineError, match="warm"):
        coldstart.start_results([START], [WarmStart(True, False, 2.0, 0.2, 0.1, 0)], "1")


@pytest.mark.model
@pytest.mark.long
def test_real_servers_start_cold_and_warm(tmp_path):
    report = coldstart.run(Options(tmp_path, lambda _: None, runs=1))
    assert 0 < report.value(coldstart.WARMED, "first_ttft") < 10
    assert report.value(coldstart.COLD, "later_ttft") > 0
    assert report.value(coldstart.WARMED, "seconds_to_ready") > 0
    assert report.ratios["first_ttft_cold_over_warmed"] > 0


def timings(folder, tasks):
    document = breakdown(tasks, None, setup=1.0, start=2.0)
    folder.mkdir(parents=True)
    (folder / "timings.json").write_text(json.dumps(document))
    return document, folder / "timings.json"


def test_the_orchestration_s_share_of_the_latest_run_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="make demo"):
        pipeline.run(Options(tmp_path, print))
    tasks = [
        {
            "task_id": name,
            "state": "success",
            "try_number": 1,
            "start_date": f"2026-01-01T00:00:{start:02d}+00:00",
            "end_date": f"2026-01-01T00:00:{end:02d}+00:00",
        }
        for name, start, end in (("prepare_run", 0, 10), ("check_x", 10, 40))
    ]
    _, empty = timings(tmp_path / "runs" / "a", [])
    os.utime(empty, (1, 1))
    document, _ = timings(tmp_path / "runs" / "b", tasks)
    report = pipeline.run(Options(tmp_path, print))
    assert report.ratios == {"overhead_share": document["overhead_share"]}
    assert report.value("tuneline", "run_seconds") == 40.0
    assert report.value("tuneline", "airflow_start_seconds") == 2.0
    assert report.workload["tasks"] == 2
    with pytest.raises(UserError, match="no task ran"):
        pipeline.run(Options(tmp_path, print, input=empty))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "other/1"}'])
def test_a_file_of_something_else_than_timings_is_refused(tmp_path, text):
    path = tmp_path / "timings.json"
    path.write_text(text)
    with pytest.raises(UserError, match="timings"):
        pipeline.run(Options(tmp_path, print, input=path))
