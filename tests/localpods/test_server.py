"""Starting, dying, coming back, stopping."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server, state_of, wait_for

from localpods.__main__ import main


def test_server_starts_in_a_second(served: Callable[..., Server]) -> None:
    began = time.monotonic()
    served()
    assert time.monotonic() - began < 3, "a second, and as much again on a busy machine"


def test_pods_survive_a_killed_server(own_server: Server, tmp_path: Path) -> None:
    api = Api(own_server)
    go = tmp_path / "go"
    later = tmp_path / "later"
    wait = "until [ -e {} ]; do sleep 0.1; done"
    api.create("survives", f"echo first; {wait.format(later)}; echo second; exit 3")
    api.create("ends-meanwhile", f"{wait.format(go)}; echo done > $TERMINATION_MESSAGE_PATH")
    api.wait_log("survives", "first")
    api.wait_phase("ends-meanwhile", "Running")
    before = api.read("survives")
    own_server.kill()
    go.touch()
    wait_for(lambda: list(own_server.state.glob("pods/*/containers/*/exit.json")), what="an end")
    own_server.start()
    # The same port and token: who was connected goes on.
    pod = api.read("survives")
    assert pod.metadata.uid == before.metadata.uid
    assert pod.status.phase == "Running"
    assert state_of(pod).running.started_at == state_of(before).running.started_at
    assert int(pod.metadata.resource_version) >= int(before.metadata.resource_version)
    later.touch()
    assert api.log("survives", follow=True) == "first\nsecond\n"
    assert state_of(api.wait_phase("survives", "Failed")).terminated.exit_code == 3
    ended = state_of(api.wait_phase("ends-meanwhile", "Succeeded")).terminated
    assert ended.message == "done\n"
    assert api.events("survives")["Started"] == "Started container base"


def test_pod_can_be_deleted_after_a_restart(own_server: Server) -> None:
    api = Api(own_server)
    api.create("outlives", "echo $BASHPID; sleep 600")
    api.wait_log("outlives", "\n")
    process = psutil.Process(int(api.log("outlives")))
    own_server.kill()
    own_server.start()
    api.core.delete_namespaced_pod("outlives", NAMESPACE, grace_period_seconds=5)
    wait_for(lambda: not api.exists("outlives"), what="the end of the pod")
    assert not process.is_running()


def test_pod_whose_supervisor_is_killed_fails_and_leaves_nothing(own_server: Server) -> None:
    api = Api(own_server)
    api.create("unwatched", "echo $BASHPID; setsid sleep 600 & sleep 600")
    api.wait_log("unwatched", "\n")
    process = psutil.Process(int(api.log("unwatched")))
    family = [process, *process.children()]
    supervisor = process.parent()
    assert supervisor is not None
    supervisor.kill()
    ended = state_of(api.wait_phase("unwatched", "Failed")).terminated
    assert (ended.exit_code, ended.reason) == (137, "ContainerStatusUnknown")
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_process_with_a_reused_id_is_not_taken_for_the_pod(own_server: Server) -> None:
    api = Api(own_server)
    pod = api.create("reused", "sleep 600")
    api.wait_phase("reused", "Running")
    container = own_server.state / "pods" / pod.metadata.uid / "containers" / "base"
    own_server.kill()
    runner = json.loads((container / "runner.json").read_text())
    psutil.Process(runner["pid"]).kill()
    wait_for(lambda: not psutil.pid_exists(runner["pid"]), what="the end of the supervisor")
    # The id now belongs to somebody else, whose birth is another.
    with subprocess.Popen(["sleep", "600"]) as innocent:
        started = json.loads((container / "started.json").read_text())
        for name, record in (("runner.json", runner), ("started.json", started)):
            (container / name).write_text(json.dumps({**record, "pid": innocent.pid}))
        own_server.start()
        api.wait_phase("reused", "Failed")
        assert innocent.poll() is None
        innocent.kill()


def test_stop_ends_everything_and_says_so(
    own_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ["stop", "--state", str(own_server.state), "--grace", "0.5"]
    api = Api(own_server)
    api.create("one", "sleep 600")
    api.create("two", 'trap "" TERM; while true; do sleep 0.1; done')
    api.create("held", container_image="unknown:1")
    for name in ("one", "two"):
        api.wait_phase(name, "Running")
    assert len(own_server.processes()) >= 5
    temporary = json.loads((own_server.state / "temp.json").read_text())["path"]
    assert main(stop) == 0
    assert capsys.readouterr().out == "stopped the server, ended 2 containers\n"
    assert own_server.processes() == []
    assert not Path(temporary).exists()
    assert main(stop) == 0
    assert capsys.readouterr().out == "no server was running, ended 0 containers\n"
    # What was ended or waited does not begin anew.
    own_server.start()
    for name in ("one", "two", "held"):
        status = api.read(name).status
        assert (status.phase, status.reason) == ("Failed", "Terminated")
    assert state_of(api.read("one")).terminated.exit_code == 143
    assert state_of(api.read("two")).terminated.exit_code == 137


def test_sigterm_leaves_the_pods(own_server: Server) -> None:
    api = Api(own_server)
    api.create("stays", "sleep 600")
    api.wait_phase("stays", "Running")
    own_server.end()
    assert own_server.processes() != []


def test_sigterm_can_end_the_pods_too(tmp_path: Path) -> None:
    server = Server(tmp_path, "--kill-pods-on-exit", "--grace", "0.2")
    server.start()
    api = Api(server)
    api.create("goes", "sleep 600")
    api.wait_phase("goes", "Running")
    server.end()
    assert server.processes() == []


def test_deleted_pods_leave_no_files(own_server: Server, tmp_path: Path) -> None:
    api = Api(own_server)
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o755)
    (kept / "file").touch()
    script = f"mkdir -p deep/er; echo x > deep/er/file; ln -s {kept} link; chmod 500 deep deep/er"
    pod = api.run("tidy", script)
    directory = own_server.state / "pods" / pod.metadata.uid
    assert directory.exists()
    api.core.delete_namespaced_pod("tidy", NAMESPACE)
    assert not directory.exists()
    wait_for(lambda: list((own_server.state / "trash").iterdir()) == [], what="an empty trash")
    assert (kept / "file").exists()
    assert kept.stat().st_mode & 0o777 == 0o755


def test_second_server_on_the_same_state_is_refused(own_server: Server) -> None:
    command = [sys.executable, "-m", "localpods", "serve", "--state", str(own_server.state)]
    second = subprocess.run(
        [*command, "--images", str(own_server.images)],
        env=own_server.env,
        capture_output=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"already served by process {own_server.process.pid}" in second.stderr.decode()


def test_port_that_is_taken_is_named(served: Callable[..., Server], tmp_path: Path) -> None:
    server = served()
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "localpods", "serve", "--state", str(tmp_path / "second")]
    second = subprocess.run(
        [*command, "--images", str(server.images), "--port", port],
        env=server.env,
        capture_output=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr.decode()


def test_port_of_the_last_time_may_be_taken(own_server: Server) -> None:
    own_server.kill()
    port = int(own_server.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        own_server.start()
        assert not own_server.url.endswith(f":{port}")
        # Clients read the new one from the kubeconfig.
        Api(own_server).run("elsewhere", "true")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", 'must be an object with "images"'),
        ('{"images": {"a": {"path": []}}}', '"a" must be an object with no other keys'),
        ('{"images": {"a": {"path_prepend": ["bin"]}}}', "bin must be absolute"),
        ('{"images": {"a": {"env": {"X": 1}}}}', "must map names to texts"),
    ],
)
def test_wrong_image_map_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, why: str
) -> None:
    images = tmp_path / "images.json"
    if content is not None:
        images.write_text(content)
    assert main(["serve", "--state", str(tmp_path / "state"), "--images", str(images)]) == 2
    message = capsys.readouterr().err
    assert why in message
    assert str(images) in message
    assert "Traceback" not in message


def test_changed_image_map_counts_at_once(own_server: Server) -> None:
    api = Api(own_server)
    api.create("late-image", "true", container_image="new:1")
    api.wait_waiting("late-image")
    content = json.loads(own_server.images.read_text())
    content["images"]["new:1"] = content["images"][IMAGE]
    own_server.images.write_text(json.dumps(content))
    api.wait_phase("late-image", "Succeeded")


def test_stop_without_a_state_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "--state", str(tmp_path / "nowhere")]) == 2
    assert "is no state directory" in capsys.readouterr().err
