"""Following a run in the terminal."""

from types import SimpleNamespace

from tuneline.stack import follow


def test_a_store_that_can_not_be_read_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "_STILL_SECONDS", -1.0)
    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.0)
    states = iter(("running", "success"))
    train = {"task_id": "train", "try_number": 1, "state": "running", "duration": None}
    run = SimpleNamespace(
        state=lambda: next(states),
        tasks=lambda: [train],
        run_uri=lambda: f"{tmp_path.as_uri()}/runs/a",
    )
    lines = []
    assert follow.follow(run, lines.append) == "success"
    assert [line.split() for line in lines] == [["train", "running"]]
