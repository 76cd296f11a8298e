"""kubectl itself, with the server's kubeconfig and nothing else."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lab.commands import call
from tests.lab.pods import IMAGE, Server

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="kubectl is missing: on Debian, apt-get install kubernetes-client",
)
Kubectl = Callable[..., str]


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    """The server's kubeconfig, and a home folder for kubectl's cache."""
    return {**server.env, "HOME": str(tmp_path), "KUBECONFIG": str(server.state / "kubeconfig")}


@pytest.fixture
def kubectl(environment: dict[str, str]) -> Kubectl:
    """Run kubectl; its output."""

    def run(*arguments: str, fails: bool = False) -> str:
        done = call("kubectl", *arguments, timeout=60, **environment)
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def start(kubectl: Kubectl, name: str, script: str) -> None:
    command = ["--image", IMAGE, "--restart", "Never", "--", "bash", "-c", script]
    assert kubectl("run", name, *command) == f"pod/{name} created\n"


def row(kubectl: Kubectl, name: str) -> list[str]:
    return kubectl("get", "pods", name).splitlines()[1].split()


def test_pods_are_run_watched_described_and_deleted(
    kubectl: Kubectl, environment: dict[str, str]
) -> None:
    command = ["kubectl", "get", "pods", "-w", "-l", "run=talks"]
    watching = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    try:
        start(kubectl, "talks", "for i in 1 2 3; do echo $i; sleep 0.5; done")
        assert kubectl("logs", "-f", "talks") == "1\n2\n3\n"
        lines = [watching.stdout.readline().split() for _ in range(3)]
    finally:
        watching.kill()
        watching.wait()
    assert lines[0] == ["NAME", "READY", "STATUS", "AGE"]
    assert [line[2] for line in lines[1:]] == ["Running", "Completed"]
    assert kubectl("logs", "talks", "--tail", "1", "--since", "1h") == "3\n"
    assert "Started container talks" in kubectl("describe", "pod", "talks")
    # It waits until the pod is gone.
    assert kubectl("delete", "pod", "talks", "--grace-period", "1") == 'pod "talks" deleted\n'
    assert "not found" in kubectl("get", "pod", "talks", fails=True)


def test_failure_says_why(kubectl: Kubectl) -> None:
    start(kubectl, "breaks", "exit 3")
    waited = kubectl("wait", "--for", "jsonpath={.status.phase}=Failed", "pod/breaks")
    assert waited == "pod/breaks condition met\n"
    assert row(kubectl, "breaks")[:3] == ["breaks", "0/1", "Error"]
    assert "Exit Code:    3" in kubectl("describe", "pod", "breaks")
    kubectl("run", "unknown", "--image", "unknown:1", "--restart", "Never")
    assert row(kubectl, "unknown")[2] == "ErrImagePull"
    assert "write Never" in kubectl("run", "restarting", "--image", IMAGE, fails=True)


def test_job_from_a_file(kubectl: Kubectl, tmp_path: Path) -> None:
    container = {"name": "base", "image": IMAGE, "command": ["true"]}
    spec = {"restartPolicy": "Never", "containers": [container]}
    job = {"completions": 2, "backoffLimit": 0, "template": {"spec": spec}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "counts"}, "spec": job}
    (tmp_path / "job.yaml").write_text(json.dumps(body))
    created = kubectl("create", "-f", str(tmp_path / "job.yaml"))
    assert created == "job.batch/counts created\n"
    assert "met" in kubectl("wait", "--for", "condition=complete", "job/counts")
    assert "2 Succeeded / 0 Failed" in kubectl("describe", "job", "counts")
    assert "counts" in kubectl("get", "jobs")
    assert kubectl("delete", "job", "counts") == 'job.batch "counts" deleted\n'
    assert kubectl("get", "pods", "-l", "job-name=counts") == ""
