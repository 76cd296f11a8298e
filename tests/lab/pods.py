"""A real server in a process of its own, and the official client to talk to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from kubernetes import client, config

from localpods.shutdown import stop_pods, stop_server
from localpods.state import StateDir

IMAGE = "tuneline/ml:local"
NAMESPACE = "ml"
INCLUDE = Path(__file__).resolve().parents[2] / "include"


def wait_for(check: Callable[[], Any], seconds: float = 15.0, what: str = "it") -> Any:
    """Return the first true value of a check."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


class Server:
    """`localpods serve` in a process of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.state = directory / "state"
        self.images = directory / "images.json"
        self.options = options
        # A variable of the server that no pod may see.
        self.env = {**os.environ, "PYTHONPATH": str(INCLUDE), "SERVER_ONLY": "1"}
        self.images.write_text(
            json.dumps(
                {
                    "env": {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"},
                    "images": {
                        IMAGE: {"path_prepend": [str(Path(sys.executable).parent)]},
                        "gone:1": {"path_prepend": [str(directory / "gone")]},
                    },
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "localpods", "serve", "--state", str(self.state)]
        self.process = subprocess.Popen(
            [*command, "--images", str(self.images), *self.options], env=self.env
        )
        wait_for(self.is_ready, what="the server")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the server has ended"
        try:
            server = json.loads((self.state / "server.json").read_text())
            url = f"http://127.0.0.1:{server['port']}/readyz"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return server["pid"] == self.process.pid and answer.status == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        port = json.loads((self.state / "server.json").read_text())["port"]
        return f"http://127.0.0.1:{port}"

    @property
    def token(self) -> str:
        return (self.state / "token").read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0

    def stop(self) -> None:
        """End the server and all pods."""
        state = StateDir(self.state)
        stop_server(state)
        stop_pods(state, 0.2)
        if self.process is not None:
            self.process.wait(timeout=20)

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs because of this server: itself, supervisors, pods."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                mark = process.environ().get("LOCALPODS_CONTAINER", "")
            except (psutil.Error, OSError):
                mark = ""
            words = " ".join(process.info["cmdline"] or [])
            if str(self.state) in mark or str(self.state) in words:
                found.append(process)
        return found


class Api:
    """The official client, and a few words for what tests do often."""

    def __init__(self, server: Server) -> None:
        configuration = client.Configuration()
        config.load_kube_config(
            str(server.state / "kubeconfig"), client_configuration=configuration
        )
        api_client = client.ApiClient(configuration)
        self.core = client.CoreV1Api(api_client)
        self.batch = client.BatchV1Api(api_client)

    def create(self, name: str, script: str = "true", **spec: Any) -> client.V1Pod:
        return self.core.create_namespaced_pod(NAMESPACE, pod_body(name, script, **spec))

    def read(self, name: str) -> client.V1Pod:
        return self.core.read_namespaced_pod(name, NAMESPACE)

    def log(self, name: str, **options: Any) -> str:
        answer = self.core.read_namespaced_pod_log(
            name, NAMESPACE, _preload_content=False, **options
        )
        return answer.data.decode()

    def wait_phase(self, name: str, *phases: str) -> client.V1Pod:
        def reached() -> client.V1Pod | None:
            pod = self.read(name)
            return pod if pod.status.phase in phases else None

        return wait_for(reached, what=f"{name} to be {phases}")

    def wait_waiting(self, name: str) -> client.V1ContainerStateWaiting:
        """Wait until a pod's container says why it does not start."""

        def reason() -> client.V1ContainerStateWaiting | None:
            pod = self.read(name)
            waiting = state_of(pod).waiting if pod.status.container_statuses else None
            return waiting if waiting and waiting.message else None

        return wait_for(reason, what=f"the reason why {name} waits")

    def run(self, name: str, script: str, **spec: Any) -> client.V1Pod:
        self.create(name, script, **spec)
        return self.wait_phase(name, "Succeeded", "Failed")

    def wait_log(self, name: str, text: str) -> None:
        self.wait_phase(name, "Running", "Succeeded", "Failed")
        wait_for(lambda: text in self.log(name), what=f"{text!r} in the log")

    def exists(self, name: str) -> bool:
        try:
            self.read(name)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    def events(self, name: str) -> dict[str, str]:
        found = self.core.list_namespaced_event(
            NAMESPACE, field_selector=f"involvedObject.name={name}"
        )
        return {event.reason: event.message for event in found.items}


def pod_body(name: str, script: str, **spec: Any) -> dict[str, Any]:
    """Return a pod that runs a shell script; what begins with `container_` is for the container."""
    container = {
        "name": "base",
        "image": IMAGE,
        "command": ["bash", "-c", script],
        **{
            key.removeprefix("container_"): value
            for key, value in spec.items()
            if key.startswith("container_")
        },
    }
    rest = {key: value for key, value in spec.items() if not key.startswith("container_")}
    return {
        "metadata": {"name": name, "labels": rest.pop("labels", {})},
        "spec": {"restartPolicy": "Never", "containers": [container], **rest},
    }


def state_of(pod: client.V1Pod, container: str = "base") -> client.V1ContainerState:
    statuses = [*pod.status.container_statuses, *(pod.status.init_container_statuses or [])]
    return next(status.state for status in statuses if status.name == container)
