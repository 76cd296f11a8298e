"""Exec is answered, never executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.stream import stream
from tests.lab.pods import IMAGE, NAMESPACE, Api, state_of, wait_for

from localpods.objects import XCOM_SIDECAR

READ = (
    "if [ -s /airflow/xcom/return.json ]; then cat /airflow/xcom/return.json; "
    "else echo __airflow_xcom_result_empty__; fi"
)


def create_with_sidecar(api: Api, name: str, script: str) -> None:
    base = {"name": "base", "image": IMAGE, "command": ["bash", "-c", script]}
    sidecar = {"name": XCOM_SIDECAR, "image": "alpine", "command": ["sh", "-c", "sleep 600"]}
    api.create(name, "", containers=[base, sidecar])
    api.wait_phase(name, "Running")


def execute(api: Api, name: str, command: list[str], container: str = XCOM_SIDECAR) -> object:
    return stream(
        api.core.connect_get_namespaced_pod_exec,
        name,
        NAMESPACE,
        container=container,
        command=command,
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )


def test_xcom_is_read_from_the_pod_s_file(api: Api) -> None:
    value = json.dumps("größer" * 100_000, ensure_ascii=False)
    program = (
        "import json, os\n"
        "text = json.dumps('größer' * 100_000, ensure_ascii=False)\n"
        "open(os.environ['AIRFLOW_XCOM_PATH'], 'w').write(text)"
    )
    create_with_sidecar(api, "xcom", f"python - <<'END'\n{program}\nEND")
    pod = api.read("xcom")
    while state_of(pod).terminated is None:
        pod = api.read("xcom")
    # The sidecar waits for its reader.
    assert pod.status.phase == "Running"
    answer = execute(api, "xcom", ["/bin/sh", "-c", READ])
    answer.run_forever(timeout=10)
    # In this order: `read_all` of the client forgets the return code.
    assert answer.returncode == 0
    assert answer.read_all() == value

    shell = execute(api, "xcom", ["/bin/sh"])
    shell.write_stdin("kill -2 $(pgrep -u $(id -u) -f 'sh')\n")
    shell.run_forever(timeout=10)
    assert shell.returncode == 0
    pod = api.wait_phase("xcom", "Succeeded")
    assert state_of(pod, XCOM_SIDECAR).terminated.exit_code == 0
    with pytest.raises(client.ApiException) as caught:
        api.core.connect_get_namespaced_pod_exec(
            "xcom", NAMESPACE, container=XCOM_SIDECAR, command=READ
        )
    assert caught.value.status == 400
    assert "it is not running" in caught.value.body


def test_no_xcom_is_said_in_the_reader_s_word(api: Api) -> None:
    create_with_sidecar(api, "no-xcom", "true")
    answer = execute(api, "no-xcom", ["/bin/sh", "-c", READ])
    answer.run_forever(timeout=10)
    assert answer.read_all() == "__airflow_xcom_result_empty__\n"
    api.core.delete_namespaced_pod("no-xcom", NAMESPACE)
    wait_for(lambda: not api.exists("no-xcom"), what="the end of the pod")


@pytest.mark.parametrize(
    ("container", "command"),
    [
        (XCOM_SIDECAR, ["touch", "{mark}"]),
        (XCOM_SIDECAR, ["/bin/sh", "-c", "touch {mark}"]),
        (XCOM_SIDECAR, ["/bin/sh", "-c", READ + "; touch {mark}"]),
        (XCOM_SIDECAR, ["/bin/sh", "-c", "cat /etc/passwd"]),
        ("base", ["/bin/sh", "-c", READ]),
        ("base", ["touch", "{mark}"]),
    ],
)
def test_every_other_command_is_refused(
    api: Api, tmp_path: Path, container: str, command: list[str], request: pytest.FixtureRequest
) -> None:
    name = f"refused-{request.node.callspec.indices['command']}"
    create_with_sidecar(api, name, "sleep 600")
    mark = tmp_path / "mark"
    words = [word.replace("{mark}", str(mark)) for word in command]
    answer = execute(api, name, words, container)
    answer.run_forever(timeout=10)
    assert "never executes" in answer.read_stderr()
    assert answer.read_stdout() == ""
    assert answer.returncode == 126
    assert not mark.exists()
    assert api.read(name).status.phase == "Running"
    api.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)


def test_typed_commands_are_not_executed(api: Api, tmp_path: Path) -> None:
    create_with_sidecar(api, "typed", "sleep 600")
    mark = tmp_path / "mark"
    shell = execute(api, "typed", ["/bin/sh"])
    shell.write_stdin(f"touch {mark}\n")
    shell.run_forever(timeout=10)
    assert shell.returncode == 126
    assert not mark.exists()
    assert state_of(api.read("typed"), XCOM_SIDECAR).running is not None
    api.core.delete_namespaced_pod("typed", NAMESPACE, grace_period_seconds=0)
