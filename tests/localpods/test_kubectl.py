"""kubectl itself, with the server's kubeconfig and nothing else."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.lab.commands import call
from tests.lab.pods import IMAGE, Server

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="kubectl is missing: on Debian, apt-get install kubernetes-client",
)

JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "counts"},
    "spec": {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "base",
                        "image": IMAGE,
                        "command": ["bash", "-c", "echo $JOB_COMPLETION_INDEX"],
                    }
                ],
            }
        },
    },
}


class Kubectl:
    """Runs kubectl on one server."""

    def __init__(self, server: Server, home: Path) -> None:
        # Its cache lies in the home folder.
        self._env = {**server.env, "HOME": str(home)}
        self._options = ["--kubeconfig", str(server.state / "kubeconfig")]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return call("kubectl", *self._options, *arguments, timeout=60, **self._env)

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or done.stderr.startswith(("No resources", "Found"))
        return done.stdout

    def start(self, name: str, script: str, *options: str) -> None:
        command = ["--image", IMAGE, "--restart", "Never", *options, "--", "bash", "-c", script]
        assert self("run", name, *command) == f"pod/{name} created\n"


@pytest.fixture
def kubectl(server: Server, tmp_path: Path) -> Kubectl:
    return Kubectl(server, tmp_path)


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_pod_is_run_listed_described_and_deleted(kubectl: Kubectl) -> None:
    kubectl.start("seen", "echo hello; sleep 600")
    header, row = table(kubectl("get", "pods", "seen"))
    assert header == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row[:4] == ["seen", "1/1", "Running", "0"]
    described = kubectl("describe", "pod", "seen")
    assert "State:          Running" in described
    assert "Started container seen" in described
    assert table(kubectl("get", "pods", "-l", "run=seen", "-o", "name")) == [["pod/seen"]]
    [event] = [e for e in table(kubectl("get", "events")) if e[2:4] == ["Started", "pod/seen"]]
    assert event[1] == "Normal"
    # It waits until the pod is gone.
    assert kubectl("delete", "pod", "seen", "--grace-period", "1") == 'pod "seen" deleted\n'
    missing = kubectl.run("get", "pod", "seen")
    assert (missing.returncode, "not found" in missing.stderr) == (1, True)


def test_log_is_followed(kubectl: Kubectl) -> None:
    kubectl.start("talks", "for i in 1 2 3; do echo $i; sleep 0.5; done")
    assert kubectl("logs", "-f", "talks") == "1\n2\n3\n"
    assert kubectl("logs", "talks", "--tail", "1") == "3\n"
    assert kubectl("logs", "talks", "--timestamps").splitlines()[0].endswith("Z 1")
    assert kubectl("logs", "talks", "--since", "1h") == "1\n2\n3\n"


def test_failure_says_why(kubectl: Kubectl) -> None:
    kubectl.start("breaks", "exit 3")
    waited = kubectl("wait", "--for", "jsonpath={.status.phase}=Failed", "pod/breaks")
    assert waited == "pod/breaks condition met\n"
    assert table(kubectl("get", "pod", "breaks"))[1][:3] == ["breaks", "0/1", "Error"]
    assert "Exit Code:    3" in kubectl("describe", "pod", "breaks")
    kubectl("run", "unknown", "--image", "unknown:1", "--restart", "Never")
    assert table(kubectl("get", "pod", "unknown"))[1][2] == "ErrImagePull"
    restarting = kubectl.run("run", "restarting", "--image", IMAGE)
    assert "write Never" in restarting.stderr


def test_job_from_a_file(kubectl: Kubectl, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(JOB))
    assert kubectl("create", "-f", str(path)) == "job.batch/counts created\n"
    assert "met" in kubectl("wait", "--for", "condition=complete", "job/counts")
    assert table(kubectl("get", "jobs"))[-1][:3] == ["counts", "Complete", "2/2"]
    assert kubectl("logs", "job/counts") in ("0\n", "1\n")
    assert "2 Succeeded / 0 Failed" in kubectl("describe", "job", "counts")
    assert kubectl("delete", "job", "counts") == 'job.batch "counts" deleted\n'
    assert table(kubectl("get", "pods", "-l", "job-name=counts")) == []


def test_changes_are_watched(kubectl: Kubectl) -> None:
    watching = subprocess.Popen(
        ["kubectl", *kubectl._options, "get", "pods", "-w", "-l", "run=watched"],
        env=kubectl._env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        kubectl.start("watched", "sleep 1")
        assert watching.stdout is not None
        lines = [watching.stdout.readline().split() for _ in range(3)]
    finally:
        watching.kill()
        watching.wait()
    assert lines[0][0] == "NAME"
    assert [line[2] for line in lines[1:]] == ["Running", "Completed"]
