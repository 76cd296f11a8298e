"""What `up`, `down` and `demo` refuse, and what they leave running."""

import signal
import time
import urllib.request

import psutil
import pytest
from tests.stack.conftest import interrupt, output_until

from tuneline.stack import services
from tuneline.stack.airflow import COMPONENTS
from tuneline.stack.lifecycle import FOLLOWER, GATEWAY, PODS, Stack
from tuneline.stack.runs import DagRun
from tuneline.stack.services import require_free
from tuneline.stack.tracking import TRACKING

ROWS = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{}"}]}\n'
SERVICES = {*COMPONENTS, PODS, TRACKING, FOLLOWER, GATEWAY}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS * 5)
    return path


def processes(commands):
    """Process ids of the services, by name."""
    table = Stack(commands.layout(), print).table
    found = {name: table.find(name) for name in table.names()}
    return {name: process.pid for name, process in found.items() if process}


@pytest.mark.parametrize(
    ("command", "setting", "what"),
    [
        ("up", "TUNELINE_UI_PORT", "the Airflow UI"),
        ("up", "TUNELINE_TRACKING_PORT", "MLflow"),
        # Else its model could not be served in the end.
        ("demo", "TUNELINE_GATEWAY_PORT", "the gateway"),
    ],
)
def test_a_taken_port_stops_everything_before_it_starts(
    commands, data, taken, command, setting, what
):
    options = ["--data", str(data)] if command == "demo" else []
    done = commands.run(command, *options, **{setting: str(taken)})
    assert done.returncode == 2
    assert f"for {what} is taken by" in done.stderr
    assert f"with {setting}=" in done.stderr
    assert done.stderr.count("\n") == 1
    assert processes(commands) == {}


def test_a_second_demo_is_refused(commands, data):
    with services.held(commands.layout().home / "demo.lock", "a demo"):
        done = commands.run("demo", "--data", str(data))
    assert done.returncode == 2
    assert "a demo is running already (process" in done.stderr


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("training: {epochs: many}", "training.epochs"),
        ("trainign: {epochs: 1}", "trainign: there is no such setting"),
        ("training: [", "line"),
        ("base_model: /no/such", "base model '/no/such': there is no directory of that name"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(commands, data, tmp_path, settings, why):
    config = tmp_path / "settings.yaml"
    config.write_text(settings)
    done = commands.run("demo", "--data", str(data), "--config", str(config))
    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert processes(commands) == {}


def test_a_missing_dataset_is_refused(commands, tmp_path):
    done = commands.run("demo", "--data", str(tmp_path / "none.jsonl"))
    assert done.returncode == 2
    assert "none.jsonl does not exist" in done.stderr


def test_down_with_nothing_running_says_so(commands):
    done = commands.run("down")
    assert done.returncode == 0
    assert "nothing was running" in done.stdout


@pytest.mark.stack
def test_up_leaves_a_running_stack_alone_and_down_ends_it(commands):
    layout = commands.layout()
    (layout.home / "serving").mkdir(parents=True, exist_ok=True)
    # As a stack on another port left it.
    (layout.home / "serving" / "gateway.yaml").write_text("port: 1\n")
    assert commands.run("up").returncode == 0
    first = processes(commands)
    assert set(first) == SERVICES
    loopback = {"127.0.0.1", "::1"}
    for pid in first.values():
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        listening = [c for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"]
        assert {connection.laddr.ip for connection in listening} <= loopback
    again = commands.run("up")
    assert "runs already" in again.stdout
    assert processes(commands) == first
    assert f"MLflow:     {layout.tracking_url}" in again.stdout
    with urllib.request.urlopen(layout.tracking_url) as page:
        assert b"MLflow" in page.read()
    for name, ran in (("TRACKING", layout.tracking_port), ("UI", layout.ui_port)):
        moved = commands.run("up", **{f"TUNELINE_{name}_PORT": "1"})
        assert moved.returncode == 2
        assert f"runs on port {ran}, not 1" in moved.stderr
    assert commands.run("down").returncode == 0
    assert processes(commands) == {}
    assert not any(psutil.pid_exists(pid) and _alive(pid) for pid in first.values())
    require_free(layout.ui_port, "the UI", "X")


@pytest.mark.stack
@pytest.mark.long
def test_interrupting_a_demo_stops_only_what_it_started(running, client, data):
    before = processes(running)
    demo = running.begin("demo", "--data", str(data))
    line = output_until(demo, "started; follow it at")
    run_id = line.split("run ", 1)[1].split()[0]
    output = interrupt(demo)
    assert demo.returncode == 130
    assert "stopping what this call started" in output
    assert processes(running) == before
    assert DagRun(client, run_id).state() == "failed"


@pytest.mark.stack
def test_interrupting_a_demo_that_started_the_stack_stops_the_stack(commands, data):
    demo = commands.begin("demo", "--data", str(data))
    output_until(demo, "starting Airflow")
    interrupt(demo)
    assert demo.returncode == 130
    assert processes(commands) == {}
    require_free(commands.layout().ui_port, "the UI", "X")


@pytest.mark.stack
@pytest.mark.long
def test_a_restarted_scheduler_is_waited_for_and_the_rest_is_left_alone(running):
    before = processes(running)
    scheduler = psutil.Process(before["scheduler"])
    for process in [*scheduler.children(recursive=True), scheduler]:
        process.kill()
    up = running.run("up")
    assert up.returncode == 0, up.stderr
    assert "starting Airflow (scheduler)" in up.stdout
    after = processes(running)
    assert after.pop("scheduler") != before.pop("scheduler")
    assert after == before


# It comes last, as it ends the stack that the two before it share.
@pytest.mark.stack
@pytest.mark.long
def test_a_run_that_a_crash_left_behind_does_not_hold_up_the_next(running, client, data):
    assert running.run("up").returncode == 0
    run = DagRun(client, "lost")
    run.trigger({"data": str(data)})
    deadline = time.monotonic() + 240
    while run.state() != "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.state() == "running"
    for pid in processes(running).values():
        for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            process.send_signal(signal.SIGKILL)
    demo = running.begin("demo", "--data", str(data))
    output_until(demo, "ending the run lost")
    output_until(demo, "started; follow it at")
    assert run.state() == "failed"
    interrupt(demo)


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
