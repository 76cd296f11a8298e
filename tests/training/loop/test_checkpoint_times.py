"""Checkpoints by the clock, and a last one where a training is told to end."""

import json
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from tuneline.errors import EXIT_RETRY, RetryableError
from tuneline.training.loop.checkpoints import EndOnSignal, SaveByClock
from tuneline.training.processes.group import ALONE


def step_end(callback, step=1, steps=10):
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    state = SimpleNamespace(global_step=step, max_steps=steps)
    callback.on_step_end(None, state, control)
    return control


def test_the_clock_orders_a_checkpoint_and_any_checkpoint_sets_it_back():
    now = [0.0]
    callback = SaveByClock(10, clock=lambda: now[0])
    now[0] = 5000.0  # the model was loaded for long
    callback.on_train_begin(None, None, None)
    now[0] += 599
    assert not step_end(callback).should_save
    now[0] += 1
    assert step_end(callback).should_save
    callback.on_save(None, None, None)
    now[0] += 599
    assert not step_end(callback).should_save
    # One of a validation pass.
    callback.on_save(None, None, None)
    now[0] += 599
    assert not step_end(callback).should_save
    now[0] += 1
    assert step_end(callback).should_save


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


def started(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "last-words"))
    command = [sys.executable, "-m", "tuneline.cli", "run", "train", "--run", run.run.uri]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def pointer_of(run):
    key = run.run.key("work", "train", "latest.json")
    if not run.run.store.exists(key):
        return None
    return json.loads(run.run.store.get_bytes(key))


# One validation pass, the last step's: no checkpoint comes from it.
LONG = {"epochs": 20, "evaluations": 1, "dropout": 0.1}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_told_to_end_loses_no_step(lab, tmp_path, monkeypatch, processes):
    """As a drained node tells it; several processes end together, with one checkpoint."""
    settings = {**LONG, "processes": processes, "effective_batch": 8}
    run = lab(name="told", **settings)
    run.prepare(micro_batch=2)
    process = started(run, tmp_path, monkeypatch)
    for line in process.stderr:
        if ": loss " in line:
            break
    assert pointer_of(run) is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == EXIT_RETRY
    words = (tmp_path / "last-words").read_text()
    assert words.startswith("retryable: ")
    assert "SIGTERM" in words or "signal 15" in words
    told = pointer_of(run)["step"]
    assert told > 0

    again = started(run, tmp_path, monkeypatch)
    again.communicate(timeout=240)
    assert again.returncode == 0
    document = run.trained
    assert document["resumed_from"] == told
    assert document["world_size"] == processes
    assert document["steps"] == document["steps_planned"] == 90
    history = run.history
    assert [e["step"] for e in history if "loss" in e] == list(range(1, 91))
    if processes > 1:
        return
    whole = lab(name="whole", **settings)
    whole.train(micro_batch=2)
    ours, theirs = run.adapter, whole.adapter
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name


def test_a_killed_training_goes_on_from_a_checkpoint_of_the_clock(lab, tmp_path, monkeypatch):
    run = lab(checkpoint_minutes=0.01, **LONG)
    run.prepare()
    process = started(run, tmp_path, monkeypatch)
    while (found := pointer_of(run)) is None:
        assert process.poll() is None
        time.sleep(0.02)
    assert found["step"] < 90
    process.kill()
    process.communicate()
    run.resume()
    document = run.trained
    assert found["step"] <= document["resumed_from"] < document["steps"] == 90
    evaluations = run.document("train", "checkpoints.json")["evaluations"]
    assert [e["step"] for e in evaluations] == [0, 90]
