"""A run in real Airflow whose training is killed again and again: it ends as if it had not been."""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.lab.ml_environment import ml
from tests.lab.waiting import wait_for

from tuneline.machine.airflow_api import AirflowApi
from tuneline.run import Run
from tuneline.stack.layout import Layout, main_dag_id
from tuneline.stack.runs import DagRun
from tuneline.store import NotThere

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


RESUMED = re.compile(r"resuming from the checkpoint of step (\d+) of (\d+)")


class Training:
    """The task `train` of one run of the DAG, looked at from outside."""

    def __init__(self, client: AirflowApi, layout: Layout, run: DagRun) -> None:
        self._client, self._layout, self._run = client, layout, run
        self._path = f"/dags/{main_dag_id()}/dagRuns/{run.run_id}/taskInstances/train"

    def task(self) -> dict[str, Any]:
        return self._client.call("GET", self._path).json()

    def opened(self) -> Run:
        return Run.open(str(self._run.run_uri()))

    def await_start(self, seconds: float) -> None:
        """Wait until the task runs; what comes before it has to go well."""

        def running() -> bool:
            tasks = self._run.tasks()
            assert not {t["task_id"]: self._run.failure(t) for t in tasks if t["state"] == "failed"}
            return self.task()["state"] == "running"

        wait_for(running, "the beginning of train", pause=0.5, seconds=seconds)

    def await_end(self, seconds: float) -> dict[str, Any]:
        """Wait until the task has no further try; the task."""
        wait_for(self._has_ended, "the end of train", pause=0.5, seconds=seconds)
        return self.task()

    def _has_ended(self) -> bool:
        return self.task()["state"] in ("success", "failed")

    def stop(self) -> None:
        self._run.stop()

    def follows(self, try_number: int) -> bool:
        """Whether a try has found a running pod of the one before."""
        task = self.task()
        if (task["state"], task["try_number"]) != ("running", try_number):
            return False
        return any("Reusing existing pod" in line for line in self.log(try_number))

    def pod_process(self) -> psutil.Process | None:
        """The process of the pod that trains now, the container's first."""
        for process in psutil.process_iter(["cmdline"]):
            try:
                mark = process.environ().get("LOCALPODS_CONTAINER", "")
            except (psutil.Error, OSError):
                continue
            words = process.info["cmdline"] or []
            if mark.startswith(str(self._layout.pods)) and "run train --run" in " ".join(words):
                return process
        return None

    def step(self) -> int:
        """Step of the newest checkpoint; 0 before the first."""
        run = self.opened()
        key = run.key("work", "train", "latest.json")
        try:
            return int(json.loads(run.store.get_bytes(key))["step"])
        except NotThere:
            return 0

    def wait(self, check: Callable[[], Any], what: str, seconds: float = 300) -> Any:
        """The first true value of a check while training has not ended."""

        def look() -> Any:
            found = check()
            assert found or not self._has_ended(), f"train has ended: waited for {what}"
            return found

        return wait_for(look, what, pause=0.2, seconds=seconds)

    def kill_pod(self, after_step: int, pause: float) -> int:
        """`kill -9` of the pod's process, some time after a checkpoint newer than a step."""
        self.wait(lambda: self.step() > after_step, f"a checkpoint after step {after_step}")
        process = self.wait(self.pod_process, "the training process")
        time.sleep(pause)
        step = self.step()
        process.send_signal(signal.SIGKILL)
        return step

    def kill_worker(self) -> int:
        """`kill -9` of the process that carries the task out; returns its try's number."""
        task = self.task()
        psutil.Process(task["pid"]).send_signal(signal.SIGKILL)
        return int(task["try_number"])

    def log(self, try_number: int) -> list[str]:
        answer = self._client.call("GET", f"{self._path}/logs/{try_number}?full_content=true")
        return [
            str(entry.get("event", ""))
            for entry in answer.json().get("content", [])
            if isinstance(entry, dict)
        ]

    def resumed(self, try_number: int) -> int | None:
        """The step from which a try has resumed."""
        found = [RESUMED.search(line) for line in self.log(try_number)]
        return next((int(match.group(1)) for match in found if match), None)


@pytest.fixture
def training(running, client, tmp_path):
    """A run of a tiny base that has come to `train`."""
    ml("-c", MAKE_BASE, str(tmp_path / "base"))
    run = DagRun(client, "killed")
    settings = {"base_model": str(tmp_path / "base"), **SETTINGS}
    run.trigger({"data": "sample://support.jsonl", "overrides": yaml.safe_dump(settings)})
    training = Training(client, running.layout(), run)
    training.await_start(900)
    yield training
    training.stop()


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
