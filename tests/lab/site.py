"""An Airflow of several users, whose DAGs are those of `tests/stack/dags`."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from tuneline.stack import airflow
from tuneline.stack.layout import Layout

ROOT = Path(__file__).parents[2]


class Users:
    """The API of an Airflow as its users call it; `watcher` is who looks at tasks."""

    def __init__(self, url: str, passwords: Mapping[str, str], watcher: str) -> None:
        self.url, self.passwords, self.watcher = url, passwords, watcher
        # On a busy machine the API server takes its time.
        self.http, self.tokens = httpx.Client(base_url=url, timeout=60, trust_env=False), {}

    def request(self, user, method, path, **body):
        if user not in self.tokens:
            login = {"username": user, "password": self.passwords[user]}
            self.tokens[user] = self.http.post("/auth/token", json=login).json()["access_token"]
        headers = {"Authorization": f"Bearer {self.tokens[user]}"}
        return self.http.request(method, path, headers=headers, json=body or None)

    def call(self, user, method, path, **body):
        """Call the API, version 2."""
        return self.request(user, method, f"/api/v2{path}", **body)

    def until(self, condition, what, seconds=600):
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except (httpx.HTTPError, KeyError):
                pass
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(1)

    def settle(self):
        """Wait until the scheduler knows that a question's task has left its worker.

        Airflow 3.3.2 takes an answer that comes sooner for a failure, and its scheduler ends. No
        person is that quick.
        """

        def beat():
            health = self.call(self.watcher, "GET", "/monitor/health").json()
            return health["scheduler"]["latest_scheduler_heartbeat"]

        for _ in range(2):
            last = beat()
            self.until(lambda last=last: beat() != last, "a heartbeat of the scheduler")

    def tasks(self, dag, run):
        """Return the task instances of a run, by task and map index."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances?limit=100"
        found = self.call(self.watcher, "GET", path).json()
        return {(t["task_id"], t["map_index"]): t for t in found["task_instances"]}

    def waits(self, dag, run, task, tries=1, seconds=240):
        """Wait until a question is put for the given time."""

        def put():
            found = self.tasks(dag, run)
            assert not (failed := [key for key in found if found[key]["state"] == "failed"]), failed
            return any(
                name == task and one["state"] == "awaiting_input" and one["try_number"] >= tries
                for (name, _), one in found.items()
            )

        self.until(put, f"question {tries} of {task}", seconds)
        self.settle()

    def question(self, dag, run, task, index=-1):
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/{index}/hitlDetails"
        return self.call(self.watcher, "GET", path).json()

    def answer(self, user, dag, run, task, option, fields, index=-1):
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/{index}/hitlDetails"
        body = {"chosen_options": [option], "params_input": fields}
        return self.call(user, "PATCH", path, **body).status_code


class Site(Users):
    """Airflow's services on free ports; each user's password is the name."""

    def __init__(
        self, layout: Layout, users: Mapping[str, str], watcher: str, **environment: str
    ) -> None:
        airflow.prepare(layout)
        super().__init__(layout.ui_url, {user: user for user in (*users, airflow.USER)}, watcher)
        (layout.airflow_home / "passwords.json").write_text(json.dumps(self.passwords))
        self.layout, self.processes = layout, []
        listed = ",".join(f"{user}:{role}" for user, role in users.items())
        self.env = {
            **airflow.environment(layout),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "tests" / "stack" / "dags"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": listed,
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "PYTHONPATH": str(ROOT / "include"),
            **environment,
        }

    def start(self, parts=airflow.COMPONENTS):
        command = str(self.layout.airflow_python.with_name("airflow"))
        subprocess.run([command, "db", "migrate"], env=self.env, check=True, capture_output=True)
        for part in parts:
            more = ["--skip-serve-logs"] if part == "scheduler" else []
            log = (self.layout.home / f"{part}.log").open("wb")
            self.processes.append(
                subprocess.Popen(
                    [command, part, *more],
                    env=self.env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def stop(self):
        for process in self.processes:
            os.killpg(process.pid, 2)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
