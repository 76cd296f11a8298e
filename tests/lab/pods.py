"""A real server in its own process, and the official client for it."""

import base64
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from kubernetes import client, config
from tests.lab.waiting import wait_for

IMAGE = "tuneline/ml:local"
NAMESPACE = "ml"
INCLUDE = Path(__file__).resolve().parents[2] / "include"


class Server:
    """`localpods serve` in its own process; pods get 0.2 s to end with it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.state = directory / "state"
        self.images = directory / "images.json"
        self.options = options
        # A variable of the server that no pod may see.
        self.env = {**os.environ, "PYTHONPATH": str(INCLUDE), "SERVER_ONLY": "1"}
        folders = {IMAGE: Path(sys.executable).parent, "gone:1": directory / "gone"}
        images = {name: {"path_prepend": [str(folder)]} for name, folder in folders.items()}
        env = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        self.images.write_text(json.dumps({"env": env, "images": images}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "localpods", "serve", "--state", str(self.state)]
        options = ["--images", str(self.images), "--grace", "0.2", *self.options]
        self.process = subprocess.Popen([*command, *options], env=self.env)
        wait_for(self.is_ready, what="the server")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the server has ended"
        try:
            with self.open("/readyz", token=None) as answer:
                server = json.loads((self.state / "server.json").read_text())
                return server["pid"] == self.process.pid and answer.status == 200
        except OSError:
            return False

    def open(self, path: str, *, token: str | None, **request: Any) -> Any:
        """Send a request as a plain HTTP client that verifies the certificate."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        asked = urllib.request.Request(
            f"{self.url}{path}", **{**request, "headers": {**headers, **request.get("headers", {})}}
        )
        return urllib.request.urlopen(asked, timeout=5, context=self.tls)

    @property
    def tls(self) -> ssl.SSLContext:
        """A context that trusts the authority in the kubeconfig and nothing else."""
        authority = base64.b64decode(self._cluster["certificate-authority-data"]).decode()
        return ssl.create_default_context(cadata=authority)

    @property
    def url(self) -> str:
        return self._cluster["server"]

    @property
    def _cluster(self) -> dict[str, str]:
        config = json.loads((self.state / "kubeconfig").read_text())
        return config["clusters"][0]["cluster"]

    @property
    def token(self) -> str:
        return (self.state / "token").read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0

    def stop(self) -> None:
        """End the server with all pods, also if it has ended already."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=20)
            wait_for(lambda: self.processes() == [], what="the end of all processes")

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs because of this server: itself, its guard, pods."""
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
    """The official client, and shortcuts for what tests do often."""

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
        """Wait until a pod's container gives the reason why it does not start."""

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
    """Return a pod that runs a shell script; `container_…` sets a field of the container."""
    container = {"name": "base", "image": IMAGE, "command": ["bash", "-c", script]}
    mark = "container_"
    container |= {k.removeprefix(mark): v for k, v in spec.items() if k.startswith(mark)}
    rest = {key: value for key, value in spec.items() if not key.startswith(mark)}
    return {
        "metadata": {"name": name, "labels": rest.pop("labels", {})},
        "spec": {"restartPolicy": "Never", "containers": [container], **rest},
    }


def state_of(pod: client.V1Pod, container: str = "base") -> client.V1ContainerState:
    return next(s.state for s in pod.status.container_statuses if s.name == container)
