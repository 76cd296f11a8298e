"""Progress of a step: in its log, and in the run for those who watch."""

from tests.lab.runs import Lab

from tuneline import progress
from tuneline.run import now


def test_the_last_line_of_a_step_stands_in_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    lab = Lab(tmp_path, {})
    began = now()
    assert lab.run.progress("train", began) is None
    context = lab.context("train")
    assert list(context.progress("abc", 3, "rows")) == ["a", "b", "c"]
    assert "[train] rows: 2 of 3, 0 s left (0 s)\n" in capsys.readouterr().err
    assert lab.run.progress("train", began) == "rows: 1 of 3, 0 s left (0 s)"
    assert lab.run.progress("train", "2100-01-01T00:00:00Z") is None
