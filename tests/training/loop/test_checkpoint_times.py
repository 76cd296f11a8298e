"""Checkpoints by the clock, and a last one where a training is asked to end."""

import json
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from tests.lab.forked import start_training

from tuneline.errors import EXIT_RETRY, RetryableError
from tuneline.training.loop.callbacks import EndOnSignal, SaveByClock
from tuneline.training.loop.processes import ALONE


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


def pointer_of(run):
    key = run.run.key("work", "train", "latest.json")
    if not run.run.store.exists(key):
        return None
    return json.loads(run.run.store.get_bytes(key))


# One validation pass, the last step's: no checkpoint comes from it.
LONG = {"evaluations": 1, "dropout": 0.1}


def wait_for_steps(log):
    """Wait until a training has logged a step."""
    while not log.exists() or ": loss " not in log.read_text():
        time.sleep(0.01)


def look_at_the_end(code, run, tmp_path):
    """The step of the checkpoint that a training left when it was asked to end."""
    assert code == EXIT_RETRY
    words = (tmp_path / "last-words").read_text()
    assert words.startswith("retryable: ")
    assert "SIGTERM" in words or "signal 15" in words
    left = pointer_of(run)["step"]
    assert left > 0
    return left


def look_at_the_whole(run, resumed_from, processes):
    document = run.trained
    assert document["resumed_from"] == resumed_from
    assert document["world_size"] == processes
    assert document["steps"] == document["steps_planned"] == 45
    assert [e["step"] for e in run.history if "loss" in e] == list(range(1, 46))


@pytest.mark.long
def test_a_training_that_is_asked_to_end_loses_no_step(lab, tmp_path):
    """As a drained node asks it."""
    run = lab("asked", epochs=10, **LONG)
    run.prepare(micro_batch=2)
    log = tmp_path / "log"
    last_words = {"TERMINATION_MESSAGE_PATH": str(tmp_path / "last-words")}
    process = start_training(run.run.uri, log, last_words)
    wait_for_steps(log)
    assert pointer_of(run) is None
    process.terminate()
    process.join(60)
    left = look_at_the_end(process.exitcode, run, tmp_path)

    run.resume()
    look_at_the_whole(run, left, processes=1)
    whole = lab("whole", epochs=10, **LONG)
    whole.train(micro_batch=2)
    for name, tensor in whole.adapter.items():
        assert torch.allclose(run.adapter[name], tensor, atol=1e-5), name


@pytest.mark.long
def test_several_processes_that_are_asked_to_end_end_together(lab, tmp_path, monkeypatch):
    """With one checkpoint, from which several go on."""
    run = lab(epochs=10, processes=2, effective_batch=8, **LONG)
    run.prepare(micro_batch=2)
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(tmp_path / "last-words"))
    command = [sys.executable, "-m", "tuneline.cli", "run", "train", "--run", run.run.uri]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
    wait_for_steps(log)
    assert pointer_of(run) is None
    process.terminate()
    left = look_at_the_end(process.wait(timeout=60), run, tmp_path)

    assert subprocess.run(command, capture_output=True, timeout=240, check=False).returncode == 0
    look_at_the_whole(run, left, processes=2)


def test_a_killed_training_goes_on_from_a_checkpoint_of_the_clock(lab, tmp_path):
    run = lab(epochs=20, checkpoint_minutes=0.01, **LONG)
    run.prepare()
    process = start_training(run.run.uri, tmp_path / "log")
    while (found := pointer_of(run)) is None:
        assert process.is_alive()
        time.sleep(0.02)
    assert found["step"] < 90
    process.kill()
    process.join()
    run.resume()
    document = run.trained
    assert found["step"] <= document["resumed_from"] < document["steps"] == 90
    evaluations = run.document("train", "checkpoints.json")["evaluations"]
    assert [e["step"] for e in evaluations] == [0, 90]
