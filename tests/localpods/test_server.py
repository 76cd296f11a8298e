"""Start, death, restart and end of the server."""

import json
import socket
import sys
from pathlib import Path

import psutil
import pytest
from tests.lab.commands import call
from tests.lab.pods import IMAGE, NAMESPACE, Api, Server, state_of
from tests.lab.waiting import wait_for

from localpods.__main__ import main


def test_killed_server_leaves_no_processes_and_reports_its_pods_as_failed(
    own_server: Server, tmp_path: Path
) -> None:
    api = Api(own_server)
    script = "echo first; setsid bash -c 'sleep 600 & sleep 600' & trap '' TERM; sleep 600 & wait"
    api.create("lost", script, labels={"a": "b"})
    api.run("ended", "echo done > $TERMINATION_MESSAGE_PATH; exit 3")
    api.create("held", container_image="unknown:1")
    api.create("leaving", "trap '' TERM; echo up; while true; do sleep 0.1; done")
    api.wait_log("lost", "first")
    api.wait_log("leaving", "up")
    api.core.delete_namespaced_pod("leaving", NAMESPACE, grace_period_seconds=600)
    before = {name: api.read(name) for name in ("lost", "ended", "held")}
    own_server.kill()
    wait_for(lambda: own_server.processes() == [], what="the end of all processes")
    own_server.start()
    # The same port, token and certificate: connected clients continue.
    for name in ("lost", "held"):
        pod = api.read(name)
        assert (pod.status.phase, pod.status.reason) == ("Failed", "NodeLost")
        assert pod.metadata.uid == before[name].metadata.uid
        assert int(pod.metadata.resource_version) > int(before[name].metadata.resource_version)
    ended = state_of(api.read("lost")).terminated
    assert (ended.exit_code, ended.reason) == (137, "ContainerStatusUnknown")
    assert api.log("lost", follow=True) == "first\n"
    ended = state_of(api.read("ended")).terminated
    assert (ended.exit_code, ended.message) == (3, "done\n")
    assert not api.exists("leaving")
    api.core.delete_namespaced_pod("lost", NAMESPACE)
    assert not api.exists("lost")
    assert len(list(own_server.state.glob("pods/*"))) == 2


def test_next_server_ends_what_a_killed_guard_has_left(own_server: Server) -> None:
    api = Api(own_server)
    api.create("unguarded", "sleep 600")
    # The process is a copy of the server's until it runs the command.
    wait_for(
        lambda: any(process.name() == "sleep" for process in own_server.processes()),
        what="the command",
    )
    [guard] = [p for p in own_server.processes() if "localpods.processes" in p.cmdline()]
    guard.kill()
    own_server.kill()
    left = own_server.processes()
    assert [process.name() for process in left] == ["sleep"]
    own_server.start()
    assert psutil.wait_procs(left, timeout=5)[1] == []


def test_ended_server_ends_its_pods(own_server: Server) -> None:
    api = Api(own_server)
    api.create("one", "sleep 600")
    api.create("two", 'trap "" TERM; while true; do sleep 0.1; done')
    api.create("saves", "trap 'echo saved; exit 0' TERM; echo up; sleep 600 & wait")
    api.create("held", container_image="unknown:1")
    api.wait_log("saves", "up")
    own_server.end()
    assert own_server.processes() == []
    # What has ended or waited does not start again.
    own_server.start()
    for name in ("one", "two", "saves"):
        status = api.read(name).status
        assert (status.phase, status.reason) == ("Failed", "Terminated")
    assert api.read("held").status.phase == "Failed"
    codes = [state_of(api.read(n)).terminated.exit_code for n in ("one", "two", "saves")]
    assert codes == [143, 137, 0]
    assert api.log("saves") == "up\nsaved\n"


def test_certificate_is_kept_a_damaged_one_and_a_changed_map_are_read_again(
    own_server: Server,
) -> None:
    certificate = own_server.state / "certificate.pem"
    before = certificate.read_text()
    own_server.end()
    own_server.start()
    assert certificate.read_text() == before
    own_server.end()
    certificate.write_text("damaged")
    own_server.start()
    api = Api(own_server)
    api.run("certified", "true")
    # A changed image map counts at once.
    api.create("late-image", "true", container_image="new:1")
    api.wait_waiting("late-image")
    content = json.loads(own_server.images.read_text())
    content["images"]["new:1"] = content["images"][IMAGE]
    own_server.images.write_text(json.dumps(content))
    api.wait_phase("late-image", "Succeeded")


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


def refusal(server: Server, state: Path, *options: str) -> str:
    """What a second server says that is refused as the user's error."""
    command = [sys.executable, "-m", "localpods", "serve", "--state", str(state)]
    second = call(*command, "--images", server.images, *options, **server.env)
    assert second.returncode == 2
    return second.stderr


def test_second_server_and_a_taken_port_are_refused(own_server: Server, tmp_path: Path) -> None:
    said = refusal(own_server, own_server.state)
    assert f"already served by process {own_server.process.pid}" in said
    port = own_server.url.rpartition(":")[2]
    said = refusal(own_server, tmp_path / "second", "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}" in said
    # That of the last time may be taken: clients read the new one from the kubeconfig.
    own_server.kill()
    with socket.create_server(("127.0.0.1", int(port))):
        own_server.start()
        assert not own_server.url.endswith(f":{port}")
        Api(own_server).run("elsewhere", "true")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "content: Invalid JSON"),
        ("[]", "content: Input should be an object"),
        ("{}", "images: Field required"),
        ('{"images": {"a": {"path": []}}}', "images.a.path: Extra inputs are not permitted"),
        ('{"images": {"a": {"path_prepend": ["bin"]}}}', "images.a: Value error, bin must be abs"),
        ('{"images": {"a": {"env": {"X": 1}}}}', "images.a.env.X: Input should be a valid string"),
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
