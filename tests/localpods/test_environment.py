"""The process that is started for a container."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localpods.environment import ContainerConfigError, Image, build_command
from localpods.state import StateDir

IMAGE = Image(
    path_prepend=("/opt/ml/bin",),
    env={"A": "map", "B": "map"},
    entrypoint=("tuneline",),
    cmd=("--help",),
)


def build(state: StateDir, container: dict[str, Any], **metadata: Any) -> Any:
    pod = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u" * 36, **metadata},
        "spec": {"containers": [{"name": "base", **container}]},
    }
    state.pod_dir("u" * 36).mkdir(exist_ok=True)
    return build_command(pod, pod["spec"]["containers"][0], IMAGE, Path("/message"), state)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "state")
    state.prepare()
    yield state
    state.drop_temp("u" * 36)


@pytest.mark.parametrize(
    ("container", "argv"),
    [
        ({}, ["tuneline", "--help"]),
        ({"args": ["items"]}, ["tuneline", "items"]),
        ({"command": ["bash"]}, ["bash"]),
        ({"command": ["bash"], "args": ["-c", "true"]}, ["bash", "-c", "true"]),
    ],
)
def test_command_and_arguments_of_pod_and_image(
    state: StateDir, container: dict[str, Any], argv: list[str]
) -> None:
    assert build(state, container).argv == argv


def test_later_sources_win(state: StateDir) -> None:
    given = {"A": "pod", "TERMINATION_MESSAGE_PATH": "/dev/termination-log"}
    env = build(state, {"env": [{"name": n, "value": v} for n, v in given.items()]}).env
    assert (env["A"], env["B"]) == ("pod", "map")
    # A path of a real cluster is not one here.
    assert env["TERMINATION_MESSAGE_PATH"] == "/message"
    assert env["PATH"].startswith("/opt/ml/bin:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train-0", "127.0.0.1"),
        ("train-12.workers.ml.svc.cluster.local:29500", "127.0.0.1:29500"),
        ("--master=train-0", "--master=127.0.0.1"),
        ("tcp://train-0:1234/x", "tcp://127.0.0.1:1234/x"),
        # Neither a host of the job nor a host at all.
        ("retrain-0", "retrain-0"),
        ("s3://bucket/train-0/model", "s3://bucket/train-0/model"),
        ("s3://train-0/model", "s3://train-0/model"),
        ("train-0-abc", "train-0-abc"),
    ],
)
def test_hosts_of_a_job_are_this_machine(state: StateDir, text: str, expected: str) -> None:
    command = build(state, {"args": [text]}, labels={"job-name": "train"})
    assert command.argv[1] == expected
    assert build(state, {"args": [text]}).argv[1] == text


@pytest.mark.parametrize(
    ("container", "why"),
    [
        ({"envFrom": [{"configMapRef": {"name": "c"}}]}, 'configmap "c" not found'),
        (
            {"env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]},
            "resourceFieldRef is not supported on this machine",
        ),
        (
            {"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.odd"}}}]},
            "fieldRef spec.odd is not supported",
        ),
        ({"volumeMounts": [{"name": "data", "mountPath": "/d"}]}, "the pod has no such volume"),
    ],
)
def test_what_cannot_be_given_is_said(state: StateDir, container: dict[str, Any], why: str) -> None:
    with pytest.raises(ContainerConfigError, match=why):
        build(state, container)


def test_secret_of_a_namespace_goes_first_and_an_odd_file_is_not_quoted(state: StateDir) -> None:
    reference = {"secretKeyRef": {"name": "s", "key": "key"}}
    env = {"env": [{"name": "X", "valueFrom": reference}]}
    state.secrets_file.write_text('{"s": {"key": "all"}, "n/s": {"key": "mine"}}')
    state.secrets_file.chmod(0o600)
    assert build(state, env).env["X"] == "mine"
    state.secrets_file.write_text('{"s": {"key": "hunter2"')
    with pytest.raises(ContainerConfigError) as caught:
        build(state, env)
    assert "hunter2" not in str(caught.value)
    assert "is not a JSON object" in str(caught.value)
