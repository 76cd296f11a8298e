"""Services outlive their command; their ports and locks are those of one stack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.lab.waiting import wait_for

from tuneline.errors import UserError
from tuneline.serving.processes import free_port
from tuneline.stack.services import Service, ServiceTable, held, is_free, require_free

# A service with a child; the child ignores SIGINT, as one in the middle of work may.
STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal,time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)"])
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def table(tmp_path):
    made = ServiceTable(tmp_path / "services", tmp_path / "logs")
    yield made
    for name in made.names():
        made.stop(name)


def service(code, name="thing", **more):
    argv = [sys.executable, "-c", code]
    return Service(name, argv, dict(os.environ), Path.cwd(), **more)


def test_a_service_is_found_with_its_notes_and_its_log(table, tmp_path):
    table.start(
        service("print('hello', flush=True); import time; time.sleep(300)", notes={"port": 5})
    )
    assert table.find("thing") is not None
    assert table.notes("thing") == {"port": 5}
    assert table.names() == ["thing"]
    wait_for(lambda: "hello" in (tmp_path / "logs" / "thing.log").read_text())


def test_it_is_found_and_stopped_after_a_step_of_the_clock(table, monkeypatch):
    """And another process of the same id is not taken for it."""
    table.start(service("import time; time.sleep(300)"))
    pid = table.find("thing").pid
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) - 3600)
    assert table.find("thing").pid == pid
    file = table.folder / "thing.json"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, "started": entry["started"] + "0"}))
    assert table.find("thing") is None
    file.write_text(json.dumps(entry))
    assert table.stop("thing") is True


def test_it_has_a_process_group_of_its_own(table):
    table.start(service("import time; time.sleep(300)"))
    pid = table.find("thing").pid
    assert os.getpgid(pid) == pid != os.getpgid(0)


def test_stopping_ends_what_it_started_as_well(table, tmp_path):
    table.start(service(STUBBORN, stop_seconds=1))
    log = tmp_path / "logs" / "thing.log"
    wait_for(lambda: log.read_text().strip())
    child = psutil.Process(int(log.read_text()))
    assert table.stop("thing") is True
    assert table.find("thing") is None
    assert table.names() == []
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_service_that_ended_is_not_found(table):
    table.start(service("pass"))
    wait_for(lambda: table.find("thing") is None)
    assert table.stop("thing") is False


def test_another_process_with_the_same_id_is_left_alone(table):
    """After a restart of the machine the noted id may be anybody's."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as bystander:
        table.folder.mkdir(parents=True)
        entry = {"pid": bystander.pid, "created": 1.0, "stop_seconds": 1, "notes": {}}
        (table.folder / "thing.json").write_text(json.dumps(entry))
        assert table.find("thing") is None
        assert table.stop("thing") is False
        assert bystander.poll() is None
        bystander.kill()


def test_a_damaged_note_is_not_a_service(table):
    table.folder.mkdir(parents=True)
    (table.folder / "thing.json").write_text("{")
    assert table.find("thing") is None
    assert table.stop("thing") is False


HOLDER = """
import sys
from pathlib import Path
from tuneline.stack.services import held
with held(Path(sys.argv[1]), "a demo"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "demo.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process


def test_a_second_one_is_refused_with_the_first_ones_process(holder):
    path, process = holder
    refused = pytest.raises(
        UserError, match=rf"a demo is running already \(process {process.pid}\)"
    )
    with refused, held(path, "a demo"):
        pass


def test_the_lock_ends_with_its_holder_however_that_ends(holder):
    path, process = holder
    process.kill()
    process.wait()
    with held(path, "a demo"):
        assert path.exists()


def test_it_can_be_held_again(tmp_path):
    for _ in range(2):
        with held(tmp_path / "a.lock", "a test"):
            pass


def test_a_taken_port_is_named_with_its_holder_and_the_way_out(taken):
    assert not is_free(taken)
    with pytest.raises(UserError) as refusal:
        require_free(taken, "the gateway", "TUNELINE_GATEWAY_PORT")
    message = str(refusal.value)
    assert f"port {taken} for the gateway is taken by" in message
    assert f"process {os.getpid()}" in message
    assert "TUNELINE_GATEWAY_PORT=" in message


def test_a_picked_port_is_free():
    port = free_port()
    assert is_free(port)
    require_free(port, "a test", "X")
