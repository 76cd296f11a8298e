"""Steps that raise, are killed or have no earlier step: errors have the severity of their item."""

import importlib
from datetime import timedelta

import pytest
from tests.lab.runs import Lab, change_meta, values

from tuneline import run, terminal
from tuneline.catalogue import get_step
from tuneline.cli import main
from tuneline.errors import RetryableError, StepNotRun, UserError
from tuneline.evidence import measure
from tuneline.failures import LARGEST_KEPT
from tuneline.run import Run
from tuneline.step import execute, leave_killed
from tuneline.verdicts import checklist, status

HOLDS = measure("m", 0, "rows", "<=", 0)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, {})


@pytest.fixture
def plant(monkeypatch):
    """Have a step raise an error after it has written a file of its results."""

    def make(step, error, files=None):
        def work(ctx):
            for name, content in (files or {"answers.json": "[1, 2]"}).items():
                (ctx.out / name).write_bytes(content.encode())
            raise error

        monkeypatch.setattr(importlib.import_module(get_step(step).module), "run", work)

    return make


ERRORS = {
    "user": UserError("row 7 has no label; set data.label_field"),
    "engine": RuntimeError("tensor sizes 3 and 4 differ\nsecond line"),
    "index": KeyError("intent"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_recommended_item_that_raises_fails_and_the_run_goes_on(lab, plant, kind, capsys):
    plant("determinism", ERRORS[kind])
    assert main(["step", "determinism", "--run", lab.run.uri]) == 0
    row = {row.item: row for row in checklist(lab.run)}["determinism"]
    assert (row.verdict, row.stops_release) == ("fail", False)
    said = {
        "user": "row 7 has no label; set data.label_field",
        "engine": "the step broke with RuntimeError: tensor sizes 3 and 4 differ; its log has",
        "index": "the step broke with KeyError: 'intent'; its log has",
    }[kind]
    assert row.summary.startswith(f"not measured to its end: {said}")
    assert "second line" not in row.summary
    assert row.because == "its step ended with an error"
    stored = lab.run.store.get_bytes(lab.run.step_key("determinism", "evidence.json")).decode()
    assert "Traceback" not in stored
    # The log has it for an error that nobody foresaw, and only for such a one.
    assert ("Traceback" in capsys.readouterr().err) == (kind != "user")


def test_partial_results_are_kept_and_said_to_be_partial(lab, plant):
    plant("determinism", RuntimeError("the server died"), {"a.json": "[1]", "b.json": "[2]"})
    evidence = execute("determinism", lab.run.uri)
    assert "partial results are kept: a.json, b.json" in evidence.summary
    assert values(evidence)["partial_files"] == 2
    assert [ref.name for ref in evidence.artifacts] == ["partial/a.json", "partial/b.json"]
    assert lab.document("determinism", "partial/a.json") == [1]
    # A later step that looks for the whole file does not find the part of it.
    assert not lab.context("latency_benchmark").has("determinism", "a.json")


def test_half_of_a_large_file_is_no_result(lab, plant):
    files = {"model.gguf": "x" * (LARGEST_KEPT + 1), "variants.json": "[]"}
    plant("cold_start", RuntimeError("no"), files)
    evidence = execute("cold_start", lab.run.uri)
    assert [ref.name for ref in evidence.artifacts] == ["partial/variants.json"]


def test_evidence_of_an_earlier_try_does_not_outlive_an_error(lab, plant):
    lab.leave("determinism", {"repeats.json": "[]"}, [HOLDS])
    assert status(lab.run, "determinism").verdict == "pass"
    plant("determinism", RuntimeError("no"))
    execute("determinism", lab.run.uri)
    assert status(lab.run, "determinism").verdict == "fail"
    assert not lab.context("lineage").has("determinism", "repeats.json")


@pytest.mark.parametrize("error", [UserError("wrong"), RuntimeError("broke")])
def test_a_critical_item_that_raises_stops_the_run(lab, plant, error):
    plant("latency_benchmark", error)
    with pytest.raises(type(error), match=str(error)):
        execute("latency_benchmark", lab.run.uri)
    row = status(lab.run, "latency_benchmark")
    assert (row.verdict, row.stops_release) == ("fail", True)
    assert str(error) in row.summary
    others = {row.item: row.because for row in checklist(lab.run)}
    assert others["lineage"] == "latency_benchmark failed and stopped the run before it"


def test_nobody_can_waive_a_critical_item_that_was_not_measured(tmp_path, plant):
    waivers = [
        {"item": item, "measurement": "step_errors", "up_to": 1, "reason": "known and accepted"}
        for item in ("latency_benchmark", "determinism")
    ]
    lab = Lab(tmp_path, {"waivers": waivers})
    change_meta(lab, started_by="alice")
    plant("latency_benchmark", UserError("wrong"))
    with pytest.raises(UserError):
        execute("latency_benchmark", lab.run.uri)
    plant("determinism", UserError("wrong"))
    execute("determinism", lab.run.uri)
    assert status(lab.run, "latency_benchmark").stops_release
    assert status(lab.run, "determinism").verdict == "waived"


def test_what_may_pass_is_tried_again_and_said_meanwhile(lab, plant):
    plant("determinism", RetryableError("http://127.0.0.1:1 can't be reached"))
    assert main(["step", "determinism", "--run", lab.run.uri]) == 75
    row = status(lab.run, "determinism")
    assert row.verdict == "fail"
    assert "can't be reached" in row.summary
    assert values(lab.run.find_evidence("determinism"))["step_error"] == "retryable"


def test_a_full_disk_is_worth_another_try(lab, plant):
    plant("determinism", OSError(28, "No space left on device", "/tmp/x"))
    with pytest.raises(RetryableError, match="No space left"):
        execute("determinism", lab.run.uri)


def test_a_helper_step_that_raises_leaves_nothing(lab, plant):
    plant("build_engine", RuntimeError("broke"))
    with pytest.raises(RuntimeError):
        execute("build_engine", lab.run.uri)
    assert not list(lab.run.store.keys(lab.run.step_key("build_engine")))


def test_steps_in_the_wrong_order_are_no_finding(lab):
    with pytest.raises(StepNotRun, match="distribution_balancing has not been run"):
        execute("determinism", lab.run.uri)
    assert status(lab.run, "determinism").verdict == "not_run"


def test_a_wrong_run_is_the_users_error_also_for_an_optional_item(lab, capsys):
    assert main(["step", "cold_start", "--run", f"{lab.run.uri}-other"]) == 2
    assert "there is no run at" in capsys.readouterr().err


def test_what_a_failed_item_did_not_leave_is_named_with_the_reason(lab, plant):
    plant("lora_selection", UserError("training.target_modules: no layer 'q'"))
    # Nothing can be trained without it, so that the run stops here.
    with pytest.raises(UserError, match="no layer 'q'"):
        execute("lora_selection", lab.run.uri)
    assert status(lab.run, "lora_selection").verdict == "fail"
    with pytest.raises(UserError, match=r"lora_selection left no artifact.*no layer 'q'"):
        lab.context("train").input("lora_selection", "lora.json")


SECRETS = {
    "variable": ("s3 said no to Zq8vLm2xTr5w", "Zq8vLm2xTr5w"),
    "url": ("http://mlflow:hunter22@host/x can't be reached", "hunter22"),
    "token in a url": ("https://ghp0123456@host/x can't be reached", "ghp0123456"),
    "signature": ("GET https://b/o?X-Amz-Signature=abc0d1e2f3 failed", "abc0d1e2f3"),
    "bearer": ("401 for Authorization: Bearer abcdefghij0123456789", "abcdefghij0123456789"),
    "hub token": ("hf_abcdefghijklmnopqrstuvwxyz0123 is not valid", "hf_abcdefghijklmnop"),
    "aws key": ("AKIAIOSFODNN7EXAMPLE is not known", "AKIAIOSFODNN7EXAMPLE"),
}


@pytest.mark.parametrize("where", SECRETS)
@pytest.mark.parametrize("make", [UserError, ValueError])
def test_no_secret_reaches_the_evidence(lab, plant, monkeypatch, where, make):
    text, secret = SECRETS[where]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "Zq8vLm2xTr5w")
    plant("determinism", make(text))
    evidence = execute("determinism", lab.run.uri)
    stored = lab.run.store.get_bytes(lab.run.step_key("determinism", "evidence.json")).decode()
    assert secret not in stored
    assert "***" in evidence.summary


def test_words_that_are_no_secret_stay(lab, plant):
    text = "file:///data/rows.jsonl, line 7: field 'answer' is missing; see https://docs/x?a=b"
    plant("determinism", UserError(text))
    assert text in execute("determinism", lab.run.uri).summary


def killed_twice(lab, monkeypatch, item):
    """An item that was killed in two tries, and the environment of the third and last."""
    task = {"dag_id": "d", "run_id": "r", "task_id": item}
    leave_killed(lab.run.uri, item, "its pod ran out of memory", {**task, "try_number": 2})
    for name, text in {**task, "try_number": "3", "last_try": "True"}.items():
        monkeypatch.setenv(f"TUNELINE_AIRFLOW_{name.upper()}", text)


def fall_back(ctx):
    (ctx.out / "plain.json").write_text("{}")
    return "the plain form goes on"


def test_the_last_try_after_kills_leaves_what_later_steps_need(lab, plant, monkeypatch):
    item = "production_quantization"
    killed_twice(lab, monkeypatch, item)
    plant(item, AssertionError("it would be killed once more"))
    module = importlib.import_module(get_step(item).module)
    monkeypatch.setattr(module, "fall_back", fall_back)
    evidence = execute(item, lab.run.uri)
    assert evidence.verdict == "fail"
    assert evidence.summary == (
        "not measured to its end: its pod ran out of memory; instead the plain form goes on"
    )
    assert [ref.name for ref in evidence.artifacts] == ["plain.json"]


@pytest.mark.parametrize("changed", ["LAST_TRY", "TRY_NUMBER", "RUN_ID"])
def test_any_other_try_measures(lab, plant, monkeypatch, changed):
    item = "production_quantization"
    killed_twice(lab, monkeypatch, item)
    monkeypatch.setenv(f"TUNELINE_AIRFLOW_{changed}", "9")
    plant(item, UserError("it was tried"))
    module = importlib.import_module(get_step(item).module)
    monkeypatch.setattr(module, "fall_back", fall_back)
    assert "it was tried" in execute(item, lab.run.uri).summary


def test_a_killed_step_has_evidence_from_whoever_watched_it(lab):
    lab.leave("determinism", {"repeats.json": "[]"}, [HOLDS])
    task = {"dag_id": "d", "run_id": "r", "task_id": "determinism", "try_number": 3}
    leave_killed(lab.run.uri, "determinism", "its pod ended with exit code 137", task)
    evidence = Run.open(lab.run.uri).find_evidence("determinism")
    assert evidence.verdict == "fail"
    assert evidence.airflow == task
    assert evidence.artifacts == []
    assert "exit code 137" in status(lab.run, "determinism").summary


def test_the_last_line_of_a_step_stands_in_the_run(lab, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    assert lab.run.in_progress() == {}
    context = lab.context("train")
    assert list(context.progress("abc", 3, "rows")) == ["a", "b", "c"]
    assert "[train] rows: 2 of 3, 0 s left (0 s)\n" in capsys.readouterr().err
    assert lab.run.in_progress() == {"train": "rows: 1 of 3, 0 s left (0 s)"}
    lab.run.note_progress("checkpointing", "loading")
    lab.run.end_progress("train")
    assert lab.run.in_progress() == {"checkpointing": "loading"}
    monkeypatch.setattr(run, "_SILENCE", timedelta())
    assert lab.run.in_progress() == {}


def test_a_line_that_is_half_removed_is_no_error(lab):
    lab.run.note_progress("train", "step 3")
    lab.run.note_progress("checkpointing", "loading")
    (lab.root / "store" / lab.run.key("progress", "train", ".line.json.sha256")).unlink()
    assert lab.run.in_progress() == {"checkpointing": "loading"}
