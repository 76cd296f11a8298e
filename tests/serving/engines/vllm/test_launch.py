"""The launcher: no process of the server outlives it, whichever way it ends."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from tests.lab.waiting import wait_for

from tuneline.machine.child_environment import child_environment
from tuneline.serving.engines.vllm.launch import serve_environment

# A server that has a worker, which goes on if the server is killed; both ids are printed.
SERVER = (
    "import os, signal, subprocess, sys, time; "
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print(os.getpid(), worker.pid, flush=True); "
)
PATIENT = SERVER + "time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + PATIENT
ENDS = SERVER + "sys.exit(3)"


@pytest.fixture
def launched():
    """Start a launcher of a program; gives its process and the ids of server and worker."""
    started = []

    def start(program, grace=30.0):
        code = (
            "import sys; from tuneline.serving import processes; "
            f"processes.GRACE_SECONDS = {grace}; "
            f"sys.exit(processes.supervise([sys.executable, '-c', {program!r}]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield start
    for process in started:
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def gone(pids):
    def state(pid):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"

    return all(state(pid) in ("gone", "Z") for pid in pids)


def test_sigterm_reaches_the_server_and_takes_its_worker(launched):
    process, pids = launched(PATIENT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0
    wait_for(lambda: gone(pids))


def test_its_exit_code_is_that_of_the_server(launched):
    process, pids = launched(ENDS)
    assert process.wait(10) == 3
    wait_for(lambda: gone(pids))


def test_a_killed_server_takes_its_worker(launched):
    process, pids = launched(PATIENT)
    os.kill(pids[0], signal.SIGKILL)
    process.wait(10)
    wait_for(lambda: gone(pids))


@pytest.mark.parametrize(("program", "grace"), [(PATIENT, 30.0), (DEAF, 0.3)])
def test_it_ends_when_its_input_closes(launched, program, grace):
    process, pids = launched(program, grace)
    process.stdin.close()
    process.wait(10)
    wait_for(lambda: gone(pids))


def test_without_vllm_it_says_so(monkeypatch, capsys):
    from tuneline.serving.engines.vllm import launch

    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert launch.main(["model"]) == 2
    assert capsys.readouterr().err == "error: vllm is not installed in this image\n"


def test_nothing_leaves_the_machine():
    given = serve_environment(3)
    assert given["OMP_NUM_THREADS"] == "3"
    assert {given[name] for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE")} == {
        "1"
    }
