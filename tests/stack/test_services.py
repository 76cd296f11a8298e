"""Where a stack has its things, its services with their ports and locks, and what they serve."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.lab.commands import call
from tests.lab.releases import log_release
from tests.lab.runs import Lab
from tests.lab.waiting import wait_for

from tuneline.errors import UserError
from tuneline.serving.following.release import newest_release
from tuneline.serving.gateway.accounts.keys import KeyRing
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.processes import free_port
from tuneline.stack import serving, tracking
from tuneline.stack.demo import last_run
from tuneline.stack.layout import find_layout
from tuneline.stack.lifecycle import Stack, image_map, pod_secrets
from tuneline.stack.services import Service, ServiceTable, held, require_free
from tuneline.store import open_store

ROOT = Path(__file__).parents[2]


# The layout.


@pytest.fixture
def plain(monkeypatch):
    """An environment that says nothing about a stack."""
    names = "HOME UI_PORT GATEWAY_PORT TRACKING_PORT STORE KUBECONFIG LOG_SAMPLE_RATE"
    for name in names.split():
        monkeypatch.delenv(f"TUNELINE_{name}", raising=False)
    return monkeypatch


def test_the_defaults_are_the_contract_and_the_environment_moves_them(plain, tmp_path):
    layout = find_layout()
    assert (layout.ui_port, layout.gateway_port, layout.tracking_port) == (8080, 8000, 5000)
    assert layout.home == layout.project / ".tuneline"
    assert layout.store == layout.home.as_uri()
    assert layout.log_sample_rate == 1.0
    moved = {"HOME": str(tmp_path), "STORE": "s3://bucket/x", "UI_PORT": "18080"}
    for name, value in {**moved, "TRACKING_PORT": "15000", "LOG_SAMPLE_RATE": "0.25"}.items():
        plain.setenv(f"TUNELINE_{name}", value)
    layout = find_layout()
    assert layout.airflow_home == tmp_path / "airflow"
    assert layout.store == "s3://bucket/x"
    assert layout.ui_url == "http://localhost:18080"
    assert layout.tracking_url == "http://127.0.0.1:15000"
    assert layout.log_sample_rate == 0.25


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        *(("GATEWAY_PORT", p, "must be a port number") for p in ("http", "0", "65536", "-1")),
        *(("LOG_SAMPLE_RATE", s, "must be a share") for s in ("half", "-0.1", "1.1", "nan")),
    ],
)
def test_a_port_is_a_number_and_a_share_a_share(plain, name, wrong, said):
    plain.setenv(f"TUNELINE_{name}", wrong)
    with pytest.raises(UserError, match=f"TUNELINE_{name} {said}"):
        find_layout()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_home_is_its_owners_alone(plain, tmp_path, umask):
    """Also one that an earlier version has made."""
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            plain.setenv("TUNELINE_HOME", str(tmp_path / name))
            if name == "old":
                (tmp_path / name).mkdir(mode=0o755)
            with Stack(find_layout(), print).changing():
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    finally:
        os.umask(before)


# Services.

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
    pid = table.find("thing").pid
    assert os.getpgid(pid) == pid != os.getpgid(0)
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


def test_ctrl_c_while_a_service_starts_leaves_it_where_it_can_be_stopped(
    table, tmp_path, monkeypatch
):
    """Else it would run on with nobody to know of it."""
    start, begun = subprocess.Popen, []

    def interrupted(*args, **kwargs):
        begun.append(start(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)
        return begun[0]

    stack = Stack(replace(find_layout(), home=tmp_path), print)
    stack.table = table
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), stack.starting():
        stack.start(service("import time; time.sleep(300)"))
    assert begun[0].wait(5) is not None


def test_stopping_ends_what_it_started_as_well(table, tmp_path):
    table.start(service(STUBBORN, stop_seconds=1))
    log = tmp_path / "logs" / "thing.log"
    wait_for(lambda: log.read_text().strip())
    child = psutil.Process(int(log.read_text()))
    assert table.stop("thing") is True
    assert table.find("thing") is None
    assert table.names() == []
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_what_ended_or_is_damaged_is_no_service_and_other_processes_are_left_alone(table):
    """After a restart of the machine the noted id may be anybody's."""
    table.start(service("pass"))
    wait_for(lambda: table.find("thing") is None)
    assert table.stop("thing") is False
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as bystander:
        entry = {"pid": bystander.pid, "created": 1.0, "stop_seconds": 1, "notes": {}}
        for text in (json.dumps(entry), "{"):
            (table.folder / "thing.json").write_text(text)
            assert table.find("thing") is None
            assert table.stop("thing") is False
        assert bystander.poll() is None
        bystander.kill()


HOLDER = """
import sys
from pathlib import Path
from tuneline.stack.services import held
with held(Path(sys.argv[1]), "a demo"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_ends_with_it_however_that_ends(tmp_path):
    path = tmp_path / "demo.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        busy = rf"a demo is running already \(process {process.pid}\)"
        with pytest.raises(UserError, match=busy), held(path, "a demo"):
            pass
        process.kill()
    for _ in range(2):
        with held(path, "a demo"):
            assert path.exists()


def test_a_taken_port_is_named_with_its_holder_and_the_way_out(taken):
    with pytest.raises(UserError) as refusal:
        require_free(taken, "the gateway", "TUNELINE_GATEWAY_PORT")
    message = str(refusal.value)
    assert f"port {taken} for the gateway is taken by" in message
    assert f"process {os.getpid()}" in message
    assert "TUNELINE_GATEWAY_PORT=" in message
    require_free(free_port(), "a test", "X")


# MLflow.


def test_the_server_is_small_private_and_quiet(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://elsewhere")
    service = tracking.service(layout)
    options = dict(zip(service.argv, service.argv[1:], strict=False))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "15000"
    assert options["--workers"] == "1"
    assert options["--backend-store-uri"] == f"sqlite:///{layout.home}/mlflow/mlflow.db"
    assert "MLFLOW_BACKEND_STORE_URI" not in service.env
    assert service.env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert service.env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert tracking.wanted(layout)
    assert image_map(layout)["env"]["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:15000"
    assert tracking.address(layout) == "http://127.0.0.1:15000"


def test_a_server_that_the_user_names_takes_its_place(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-hunter2")
    assert not tracking.wanted(layout)
    images = image_map(layout)
    assert images["env"]["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert "hunter2" not in json.dumps(images)
    secret = pod_secrets()["tuneline-credentials"]
    assert secret["MLFLOW_TRACKING_PASSWORD"] == "hunter2-hunter2"
    assert tracking.address(layout) == "https://mlflow.example.com"


def test_a_password_in_its_address_is_refused(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.com")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        tracking.wanted(layout)
    assert "hunter2" not in str(refusal.value)


def test_pods_of_a_cluster_could_not_reach_it(layout, tmp_path):
    cluster = replace(layout, kubeconfig=tmp_path / "kind.yaml")
    assert not tracking.wanted(cluster)
    assert "MLFLOW_TRACKING_URI" in tracking.address(cluster)
    # What the shell sets reaches local pods alone; those of a cluster read their secrets.
    assert "TUNELINE_POD_SECRETS" in tracking.address(cluster)


# What is served, and reviewed.


def test_the_newest_release_is_found(layout):
    store = open_store(layout.store)
    assert newest_release(store) is None
    log_release(store, "a", "1", "0" * 64, "2026-10-02T00:00:00Z")
    log_release(store, "b", "7", "0" * 64, "2026-10-03T00:00:00Z")
    # Not a pointer, though named like one.
    store.put_bytes("models/c/1/production.json", b"{}")
    # Damaged, or of another version of Tuneline.
    store.put_bytes("models/d/production.json", b"{}")
    newest = newest_release(store)
    assert (newest.name, newest.version) == ("b", "7")


def test_the_settings_are_a_gateways_configuration(layout):
    whole = {**serving.gateway_settings(layout), "upstreams": [], "models": []}
    config = GatewayConfig.model_validate(whole)
    assert config.port == layout.gateway_port
    assert config.production_log.store == layout.store
    assert config.production_log.spool == layout.home / "serving" / "spool"
    assert config.production_log.sample_rate == 1.0
    section = serving.gateway_settings(replace(layout, log_sample_rate=0.1))
    assert section["production_log"]["sample_rate"] == 0.1
    assert "production_log" not in serving.gateway_settings(replace(layout, log_sample_rate=0.0))


def test_the_key_is_private_stays_and_opens_the_gateway(layout):
    key = serving.api_key(layout)
    assert serving.api_key(layout) == key
    path = layout.home / "serving" / "api-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing(layout.home / "serving" / "keys.json").name_of(key) == "demo"
    path.unlink()
    assert serving.api_key(layout) != key


def test_the_curl_line_names_a_file_with_the_request(layout):
    line = serving.curl_line(layout, {"model": "a", "messages": []})
    body = layout.home / "serving" / "request.json"
    assert json.loads(body.read_text()) == {"model": "a", "messages": []}
    assert f"-d @{body}" in line
    assert "http://localhost:18000/v1/chat/completions" in line


def made(tmp_path, name, at, *, answered):
    run = Lab(tmp_path, {}, name).run
    document = {**run.meta, "created_at": at}
    run.store.put_bytes(run.key("run.json"), json.dumps(document).encode())
    if answered:
        run.store.put_bytes(run.step_key("holdout_performance", "evidence.json"), b"{}")
    return run


def test_the_last_run_with_answers_is_opened_and_without_one_the_demo_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has answers to compare; `make demo` makes one"):
        last_run((tmp_path / "store").as_uri())
    made(tmp_path, "z-old", "2026-01-01T00:00:00Z", answered=True)
    wanted = made(tmp_path, "b", "2026-01-02T00:00:00Z", answered=True)
    made(tmp_path, "a-broke", "2026-01-03T00:00:00Z", answered=False)
    assert last_run(wanted.store.uri).uri == wanted.uri


def test_without_a_terminal_it_is_one_sentence(tmp_path):
    path = os.pathsep.join([str(ROOT / "include"), *sys.path])
    command = [sys.executable, "-m", "tuneline.stack", "review"]
    done = call(*command, PYTHONPATH=path, TUNELINE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("tuneline: the review needs a terminal; write the pairs to a")
