"""Checkpoints: the newest complete one comes back, by the clock and where training shall end."""

import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from tuneline.errors import EXIT_RETRY, RetryableError
from tuneline.store import open_store
from tuneline.training.loop.callbacks import EndOnSignal, LiveCheckpoints, SaveByClock
from tuneline.training.loop.processes import ALONE
from tuneline.training.train import fingerprint


@pytest.fixture
def place(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    return LiveCheckpoints(store, "runs/r/work/train", fingerprint({"lr": 1}))


def folder(tmp_path, name, text):
    path = tmp_path / name
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "weights.bin").write_text(text)
    (path / "state.json").write_text(text * 2)
    return path


def test_the_newest_checkpoint_comes_back_whole(tmp_path, place):
    assert place.restore(tmp_path / "back") is None
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    place.save(10, {"trainer": folder(tmp_path, "b", "ten"), "evaluated": tmp_path / "a"})
    # Other settings start anew.
    other = LiveCheckpoints(place.store, place.prefix, fingerprint({"lr": 2}))
    assert other.restore(tmp_path / "back") is None
    assert place.restore(tmp_path / "back") == 10
    assert (tmp_path / "back" / "trainer" / "sub" / "weights.bin").read_text() == "ten"
    assert (tmp_path / "back" / "evaluated" / "state.json").read_text() == "fivefive"
    assert not any("step-000005" in key for key in place.store.keys("runs"))
    place.clear()
    assert list(place.store.keys("runs")) == []


def test_an_upload_cut_short_leaves_the_one_before(tmp_path, place, monkeypatch):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    put = place.store.put_file

    def dies(key, path, **options):
        if key.endswith("weights.bin"):
            raise KeyboardInterrupt
        return put(key, path, **options)

    monkeypatch.setattr(place.store, "put_file", dies)
    with pytest.raises(KeyboardInterrupt):
        place.save(10, {"trainer": folder(tmp_path, "b", "ten")})
    monkeypatch.setattr(place.store, "put_file", put)
    assert place.restore(tmp_path / "back") == 5


def test_a_damaged_checkpoint_is_not_resumed(tmp_path, place):
    place.save(5, {"trainer": folder(tmp_path, "a", "five")})
    damaged = tmp_path / "store" / place.prefix / "step-000005" / "trainer" / "state.json"
    damaged.write_text("something else")
    assert place.restore(tmp_path / "back") is None


def step_end(callback, step=1, steps=10):
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=steps), control)
    return control


def test_the_clock_orders_a_checkpoint_and_any_checkpoint_sets_it_back():
    now = [0.0]
    callback = SaveByClock(10, clock=lambda: now[0])
    now[0] = 5000.0  # the model was loaded for long
    callback.on_train_begin(None, None, None)
    # The second checkpoint is one of a validation pass.
    for passed, due, saved in ((599, 0, 0), (1, 1, 1), (599, 0, 1), (599, 0, 0), (1, 1, 1)):
        now[0] += passed
        assert step_end(callback).should_save is bool(due)
        if saved:
            callback.on_save(None, None, None)


def test_a_signal_ends_training_after_the_step_and_not_after_the_last():
    said = []
    before = signal.getsignal(signal.SIGTERM)
    with EndOnSignal(ALONE, said.append) as ending:
        assert step_end(ending).should_save is False
        signal.raise_signal(signal.SIGTERM)
        assert not ending.stopped
        # What is left after the last step is shorter than another try.
        assert step_end(ending, step=10).should_training_stop is False
        ending.check(10)
        control = step_end(ending, step=4)
    assert (control.should_save, control.should_training_stop) == (True, True)
    assert "a checkpoint of step 4" in said[0]
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(RetryableError, match="left a checkpoint of step 4"):
        ending.check(4)


def test_a_thread_hears_no_signals_and_trains_on():
    ended = []

    def thread():
        with EndOnSignal(ALONE, print) as ending:
            ended.append(step_end(ending).should_training_stop)

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    assert ended == [False]


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_asked_to_end_loses_no_step(lab, tmp_path, monkeypatch, processes):
    """As a drained node asks it; several processes end together, with one checkpoint."""
    # One validation pass, the last step's: no checkpoint comes from it.
    settings = {"epochs": 10, "evaluations": 1, "dropout": 0.1, "effective_batch": 8}
    run = lab("asked", processes=processes, **settings)
    run.prepare(micro_batch=2)
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "last-words"))
    command = [sys.executable, "-m", "tuneline.cli", "run", "train", "--run", run.run.uri]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
    while ": loss " not in log.read_text():
        time.sleep(0.01)
    assert run.checkpoint == 0
    process.terminate()
    assert process.wait(timeout=60) == EXIT_RETRY
    words = (tmp_path / "last-words").read_text()
    assert words.startswith("retryable: ")
    assert "SIGTERM" in words or "signal 15" in words
    left = run.checkpoint
    assert left > 0

    assert subprocess.run(command, capture_output=True, timeout=240, check=False).returncode == 0
    noted = run.trained
    assert (noted["resumed_from"], noted["world_size"]) == (left, processes)
    assert noted["steps"] == noted["steps_planned"] == 45
    assert [e["step"] for e in run.history if "loss" in e] == list(range(1, 46))
    if processes == 1:
        whole = lab("whole", **settings)
        whole.train(micro_batch=2)
        run.assert_trained_like(whole, tolerance=1e-5)
