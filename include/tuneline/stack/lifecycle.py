"""Start, stop and describe the stack."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tuneline.config import PodConfig
from tuneline.config.deployment import ENGINE_IMAGES
from tuneline.errors import TunelineError, UserError
from tuneline.files import write_whole
from tuneline.serving.processes import free_port, last_line
from tuneline.stack import airflow, clock, tracking
from tuneline.stack.layout import LOOPBACK, Layout, Say, main_dag_id
from tuneline.stack.runs import DagRun
from tuneline.stack.services import Service, ServiceTable, held, require_free

PODS = "localpods"
FOLLOWER = "follower"
GATEWAY = "gateway"

# A cold start imports a gigabyte of Python; on a slow disk that takes minutes.
_START_SECONDS = 240
# Database, logs, a merged model and its variants for the 135M default.
_NEEDED_GIB = 3
_GIB = 1 << 30

# Settings and credentials of the user's shell that steps read.
_PASSED_ON = (
    "AWS_ENDPOINT_URL AWS_REGION AWS_DEFAULT_REGION TUNELINE_PRESETS TUNELINE_POLICY "
    "WANDB_BASE_URL WANDB_MODE HF_ENDPOINT HTTPS_PROXY NO_PROXY SSL_CERT_FILE REQUESTS_CA_BUNDLE "
    "GOOGLE_APPLICATION_CREDENTIALS AZURE_STORAGE_ACCOUNT_NAME"
).split()
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN WANDB_API_KEY HF_TOKEN "
    "DOCKER_AUTH_CONFIG MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN "
    "AZURE_STORAGE_CONNECTION_STRING AZURE_STORAGE_ACCOUNT_KEY SPARK_REMOTE"
).split()


class Stack:
    """The services of one checkout; `started` are those that this object started, in order."""

    def __init__(self, layout: Layout, say: Say) -> None:
        self.layout = layout
        self.table = ServiceTable(layout.services, layout.home / "logs")
        self.started: list[str] = []
        self._say = say

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other commands from starting or stopping services meanwhile."""
        self.layout.make_home()
        with held(self.layout.home / "stack.lock", "starting or stopping the stack"):
            yield

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Like `changing`; if the block fails, what it started is stopped again."""
        with self.changing():
            try:
                yield
            except BaseException:
                self.stop_started()
                raise

    def up(self) -> None:
        """Start the services that do not run yet: MLflow, which is not waited for, pods, Airflow.

        Raises:
            UserError: if a port is taken, the disk is full or an environment is missing.
            TunelineError: if a service did not start; the message names its log.
        """
        running = [name for name in airflow.commands() if self.table.find(name)]
        self._check_port("api-server", self.layout.ui_port, "the Airflow UI", "TUNELINE_UI_PORT")
        if tracking.wanted(self.layout):
            mlflow, setting = tracking.TRACKING, tracking.PORT_SETTING
            self._check_port(mlflow, self.layout.tracking_port, "MLflow", setting)
        if len(running) == len(airflow.commands()) and self._pods_run():
            self._start_tracking()
            self._say(f"Airflow runs already at {self.layout.ui_url}")
            return
        self._check_ground()
        began = time.monotonic()
        self._start_tracking()
        self._start_pods()
        airflow.prepare(self.layout)
        self._migrate()
        missing = [s for s in airflow.components(self.layout) if s.name not in running]
        if missing:
            self._say(f"starting Airflow ({', '.join(service.name for service in missing)}) …")
        for service in missing:
            self.start(service)
        self._await_airflow()
        self._say(f"Airflow is up after {time.monotonic() - began:.0f} s: {self.layout.ui_url}")

    def await_tracking(self) -> None:
        """Wait until MLflow answers, if this stack has one."""
        if tracking.wanted(self.layout):
            port = self.layout.tracking_port
            self.await_ready(tracking.TRACKING, lambda: _listens(port), _START_SECONDS)

    def start(self, service: Service) -> None:
        """Start a service and remember that this object did."""
        self.table.stop(service.name)
        self.started.append(service.name)
        self.table.start(service)

    def await_ready(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a service answers.

        Raises:
            TunelineError: if it ended or took too long; the message names its log.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.table.find(name) is None:
                raise TunelineError(f"{name} ended while starting: {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise TunelineError(
                    f"{name} is not ready after {seconds:.0f} s; see {self.layout.log_of(name)}"
                )
            time.sleep(0.3)

    def stop_started(self) -> None:
        """Stop the services that this object started, newest first."""
        for name in reversed(self.started):
            self.table.stop(name)
        self.started.clear()

    def down(self) -> None:
        """End active runs, then stop all services: the gateway first, pods after Airflow."""
        # An Airflow that no longer answers is stopped all the same.
        with contextlib.suppress(TunelineError):
            self.end_active_runs()
        airflow_last = ["scheduler", "dag-processor", "api-server"]
        order = [GATEWAY, FOLLOWER, *airflow_last, PODS, tracking.TRACKING]
        others = [name for name in self.table.names() if name not in order]
        stopped = [name for name in [*others, *order] if self.table.stop(name)]
        self._say(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")

    def end_active_runs(self) -> None:
        """End runs that Airflow still counts as active, with their tasks and pods.

        A run that was active during a crash would otherwise go on and hold up the next one.
        """
        if self.table.find("api-server") is None:
            return
        with contextlib.closing(airflow.client_of(self.layout)) as client:
            if not client.health():
                return
            path = f"/dags/{main_dag_id()}/dagRuns"
            active = client.call("GET", f"{path}?state=running&state=queued", ok=(404,))
            for run in active.json().get("dag_runs", []):
                self._say(f"ending the run {run['dag_run_id']}")
                DagRun(client, run["dag_run_id"]).stop()

    def status(self) -> dict[str, str]:
        """Return the state of each service, by name."""
        return {
            name: f"process {process.pid}" if (process := self.table.find(name)) else "ended"
            for name in self.table.names()
        }

    def _check_ground(self) -> None:
        if not (path := self.layout.ml_bin / "tuneline").exists():
            raise UserError(f"{path} does not exist; run `make setup` first")
        free = shutil.disk_usage(self.layout.home).free / _GIB
        if free < _NEEDED_GIB:
            raise UserError(
                f"only {free:.1f} GiB are free on the disk of {self.layout.home}, a run needs "
                f"{_NEEDED_GIB} GiB; free some, or set TUNELINE_HOME to a folder elsewhere"
            )

    def _check_port(self, name: str, port: int, what: str, setting: str) -> None:
        if self.table.find(name) is None:
            require_free(port, what, setting)
        elif (held := self.table.notes(name).get("port")) != port:
            raise UserError(f"{what} runs on port {held}, not {port}; `make down` stops it")

    def _start_tracking(self) -> None:
        if tracking.wanted(self.layout) and self.table.find(tracking.TRACKING) is None:
            self.start(tracking.service(self.layout))

    def _pods_run(self) -> bool:
        return self.layout.kubeconfig is not None or self.table.find(PODS) is not None

    def _start_pods(self) -> None:
        if self.layout.kubeconfig is not None:
            if not self.layout.kubeconfig.is_file():
                raise UserError(f"TUNELINE_KUBECONFIG: {self.layout.kubeconfig} does not exist")
            self._say(f"pods run on the cluster of {self.layout.kubeconfig}")
            return
        if self._pods_run():
            return
        folder = self.layout.pods
        folder.mkdir(parents=True, exist_ok=True)
        images = folder / "images.json"
        images.write_text(json.dumps(image_map(self.layout), indent=1))
        write_whole(folder / "secrets.json", json.dumps(pod_secrets()).encode())
        port = free_port()
        command = [str(self.layout.airflow_python), "-m", "localpods", "serve"]
        options = ["--state", str(folder), "--port", str(port), "--images", str(images)]
        kubeconfig = folder / "kubeconfig"
        kubeconfig.unlink(missing_ok=True)
        env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        self.start(Service(PODS, [*command, *options], env, self.layout.project, {"port": port}))
        self.await_ready(PODS, lambda: kubeconfig.exists() and _listens(port), 30)

    def _migrate(self) -> None:
        if not airflow.migration_due(self.layout):
            return
        self._say("preparing Airflow's database …")
        log = self.layout.log_of("db-migrate")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as handle:
            done = subprocess.run(
                [str(self.layout.airflow_python.with_name("airflow")), "db", "migrate"],
                env=airflow.environment(self.layout),
                cwd=self.layout.project,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise TunelineError(f"Airflow's database could not be prepared; see {log}")
        airflow.migrated(self.layout)

    def _await_airflow(self) -> None:
        with contextlib.closing(airflow.client_of(self.layout)) as client:
            self.await_ready("api-server", lambda: bool(client.health()), _START_SECONDS)
            # On one machine a single step uses all cores, as it would use one GPU.
            pool = {"name": "gpu", "slots": 1, "include_deferred": True}
            client.call("POST", "/pools", ok=(409,), description="Steps that need the GPU", **pool)
            for name in airflow.commands().keys() - {"api-server", "worker"}:
                beats = partial(client.beats_since, name, self.table.started_at(name))
                self.await_ready(name, beats, _START_SECONDS)
            main = partial(client.call, "GET", f"/dags/{main_dag_id()}", ok=(404,))
            self.await_ready("dag-processor", lambda: main().is_success, _START_SECONDS)
            # All of them: a backfill or a nightly run needs the other DAGs of its model.
            client.call("PATCH", "/dags?dag_id_pattern=~&tags=tuneline", is_paused=False)

    def _last_words(self, name: str) -> str:
        log = self.layout.log_of(name)
        return f"{last_line(log.read_text(errors='replace'))} (log: {log})"


def image_map(layout: Layout) -> dict[str, object]:
    """Return the image map of the local pods: the environments that stand for the images."""
    environment = {"path_prepend": [str(layout.ml_bin)]}
    pods = PodConfig()
    names = (pods.image, pods.gpu_image)
    engines = {
        image: {"path_prepend": [str(layout.engine_bin(engine))]}
        for engine, image in ENGINE_IMAGES.items()
    }
    cache = os.environ.get("TUNELINE_CACHE") or str(Path.home() / ".cache" / "tuneline")
    env = {"OMP_WAIT_POLICY": "PASSIVE", "TUNELINE_CACHE": cache, "TUNELINE_LEDGER": layout.ledger}
    env |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= clock.environment()
    env |= tracking.pod_environment(layout)
    return {"env": env, "images": dict.fromkeys(names, environment) | engines}


def pod_secrets() -> dict[str, dict[str, str]]:
    """Return the secret of the local pods: the credentials in the environment.

    They reach pods by reference, so that Airflow never sees their values.
    """
    found = {name: os.environ[name] for name in _CREDENTIALS if os.environ.get(name)}
    return {airflow.POD_SECRET: found} if found else {}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
