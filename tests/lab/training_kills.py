"""What kills training in a real stack, and what its tries have said of it."""

import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
from tests.lab.waiting import wait_for

from tuneline.machine.airflow_api import AirflowApi
from tuneline.run import Run
from tuneline.stack.layout import Layout, main_dag_id
from tuneline.stack.runs import DagRun
from tuneline.store import NotThere

RESUMED = re.compile(r"resuming from the checkpoint of step (\d+) of (\d+)")


class Training:
    """The task `train` of one run of the DAG, looked at from outside."""

    def __init__(self, client: AirflowApi, layout: Layout, run: DagRun) -> None:
        self._client, self._layout, self._run = client, layout, run
        self._path = f"/dags/{main_dag_id()}/dagRuns/{run.run_id}/taskInstances/train"

    def task(self) -> dict[str, Any]:
        """The task instance, as Airflow's API gives it."""
        found: dict[str, Any] = self._client.call("GET", self._path).json()
        return found

    def opened(self) -> Run:
        """The run in the store."""
        return Run.open(str(self._run.run_uri()))

    def await_start(self, seconds: float) -> None:
        """Wait until the task runs; what comes before it has to go well."""

        def running() -> bool:
            tasks = self._run.tasks()
            assert not {t["task_id"]: self._run.failure(t) for t in tasks if t["state"] == "failed"}
            return self.task()["state"] == "running"

        wait_for(running, seconds, "the beginning of train", pause=0.5)

    def await_end(self, seconds: float) -> dict[str, Any]:
        """Wait until the task has no further try; the task."""
        wait_for(self._has_ended, seconds, "the end of train", pause=0.5)
        return self.task()

    def _has_ended(self) -> bool:
        return self.task()["state"] in ("success", "failed")

    def stop(self) -> None:
        """End the run of the DAG."""
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

        return wait_for(look, seconds, what, pause=0.2)

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
        """What a try has logged."""
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
