"""A run in real Airflow whose training is killed again and again: it ends as if it had not been."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.lab.ml_environment import ml
from tests.lab.training_kills import Training

from tuneline.run import Run
from tuneline.stack.airflow import client_of
from tuneline.stack.runs import DagRun

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(1500)]

KILLS = 5

# A minute or less of steps; validation only at the end, so every checkpoint is of the clock.
SETTINGS: dict[str, Any] = {
    "data": {
        "max_train_rows": 96,
        "max_holdout_rows": 24,
        "license": "Apache-2.0",
        "target_format": "chatml",
        "max_tokens": 512,
    },
    "training": {
        "r": 4,
        "alpha": 8,
        "dropout": 0.1,
        "epochs": 100,
        "max_steps": 600,
        "effective_batch": 8,
        "micro_batch": 4,
        "evaluations": 1,
        "checkpoint_minutes": 0.02,
        "rehearsal_rows": 0,
        "precision": "fp32",
        "threads": 1,
        "tracking": [],
        "plateau_evaluations": None,
    },
}

MAKE_BASE = """
import sys
from pathlib import Path
from tests.lab.training_runs import make_base
from tuneline.training.loop.model import load_torch
load_torch(1, 0)
folder = make_base(Path(sys.argv[1]))
(folder / "README.md").write_text("---\\nlicense: apache-2.0\\n---\\n")
"""

LARGEST_DIFFERENCE = """
import sys
from safetensors.torch import load_file
ours, theirs = (load_file(path) for path in sys.argv[1:])
assert ours.keys() == theirs.keys()
print(max(float((ours[name] - theirs[name]).abs().max()) for name in ours))
"""


@pytest.fixture
def training(running, tmp_path):
    """A run of a tiny base that has come to `train`."""
    ml("-c", MAKE_BASE, str(tmp_path / "base"))
    client = client_of(running.layout())
    run = DagRun(client, "killed")
    settings = {"base_model": str(tmp_path / "base"), **SETTINGS}
    run.trigger({"data": "sample://support.jsonl", "overrides": yaml.safe_dump(settings)})
    training = Training(client, running.layout(), run)
    training.await_start(900)
    yield training
    training.stop()
    client.close()


def train_again(run: Run) -> None:
    """Train the same run by one process that nobody kills; it replaces what was there."""
    assert not list(run.store.keys(run.key("work", "train")))
    ml("-m", "tuneline.cli", "run", "train", "--run", run.uri)


def test_training_whose_worker_and_pods_are_killed_ends_as_if_they_had_not_been(training, tmp_path):
    first = training.wait(training.pod_process, "the pod")
    training.wait(lambda: training.step() > 0, "the first checkpoint")
    assert training.kill_worker() == 1
    training.wait(lambda: training.follows(2), "the second try to find the pod")
    assert training.pod_process() == first

    seed = random.randrange(1 << 32)
    draw, kills = random.Random(seed), [0]
    for _ in range(KILLS):
        kills.append(training.kill_pod(kills[-1], pause=draw.uniform(0, 1)))
    task = training.await_end(600)
    context = f"killed after checkpoints of steps {kills[1:]} (seed {seed})"
    assert task["state"] == "success", context
    assert task["try_number"] == 2 + KILLS, context

    run = training.opened()
    document = json.loads(run.store.get_bytes(run.step_key("train", "run.json")))
    assert document["steps"] == document["steps_planned"], context
    # The first try of the pod began at the beginning, the second only followed it.
    resumed = [training.resumed(number) for number in range(3, 3 + KILLS)]
    assert all(a < b for a, b in zip([0, *resumed], resumed, strict=False)), (resumed, context)
    # From the newest checkpoint: that of the kill, or one that was just being written.
    assert all(step >= kill for step, kill in zip(resumed, kills[1:], strict=True)), (
        resumed,
        context,
    )
    assert document["resumed_from"] == resumed[-1]

    training.stop()
    key = run.step_key("train", "adapter/adapter_model.safetensors")
    theirs, ours = Path(run.store.uri_of(key).removeprefix("file://")), tmp_path / "ours"
    shutil.copy(theirs, ours)
    train_again(run)
    document = json.loads(run.store.get_bytes(run.step_key("train", "run.json")))
    assert document["resumed_from"] is None
    assert float(ml("-c", LARGEST_DIFFERENCE, str(ours), str(theirs))) < 1e-4, context
