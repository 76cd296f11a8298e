"""Progress of a step: in its log, and in the run for those who watch."""

from datetime import timedelta

from tests.lab.runs import Lab

from tuneline import run, terminal


def test_the_last_line_of_a_step_stands_in_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    lab = Lab(tmp_path, {})
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


def test_a_line_that_is_half_removed_is_no_error(tmp_path):
    lab = Lab(tmp_path, {})
    lab.run.note_progress("train", "step 3")
    lab.run.note_progress("checkpointing", "loading")
    (tmp_path / "store" / lab.run.key("progress", "train", ".line.json.sha256")).unlink()
    assert lab.run.in_progress() == {"checkpointing": "loading"}
