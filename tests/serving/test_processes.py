"""The life of a server's process, on small programs that start, hang and die on command."""

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.lab.waiting import wait_for

from tuneline.errors import RetryableError, TunelineError
from tuneline.serving.processes import DetachedProcess, ServerProcess

READY = "print('ready', flush=True); "
SLEEP = "import time; time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


class Scripted(ServerProcess):
    stop_seconds = 0.3
    poll_seconds = 0.01

    def __init__(self, code, **options):
        super().__init__([sys.executable, "-c", code], **{"start_seconds": 20.0, **options})
        self.pids = []

    def launch(self):
        super().launch()
        self.pids.append(self.pid)

    def waiting_for(self):
        return None if "ready" in self.read_log() else "the word"

    def start_error(self, code, lacking):
        if code is None:
            return RetryableError(f"no time left for {lacking}")
        return TunelineError(f"code {code}: {self.last_words()}")


def gone(server):
    return all(not os.path.exists(f"/proc/{pid}") for pid in server.pids)


def test_it_is_ready_within_the_block_and_gone_after_it():
    server = Scripted(READY + SLEEP)
    with server:
        log = server.log_file
        assert server.read_log() == "ready\n"
        assert 0 < server.load_seconds < 20
        assert not gone(server)
        with pytest.raises(TunelineError, match="running already"):
            server.launch()
    assert gone(server)
    assert not log.exists()
    with pytest.raises(TunelineError, match="not running"):
        server.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("load", "share"),
    [
        # A tenth of a file that is mapped lazily; what the process holds besides does not count.
        ("data = mmap.mmap(file, 0, prot=1); data[: size // 10]; rest = bytearray(size)", 0.1),
        ("data = mmap.mmap(file, 0, prot=1, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)", 1.0),
        ("data = os.read(file, size)", 1.0),
    ],
)
def test_weights_in_memory_are_resident_pages_of_the_file_or_a_copy(tmp_path, load, share):
    weights = tmp_path / "model.gguf"
    weights.write_bytes(os.urandom(size := 64 << 20))
    head = f"import mmap, os; file, size = os.open({str(weights)!r}, os.O_RDONLY), {size}; "
    with Scripted(head + load + "; " + READY + SLEEP) as server:
        found = DetachedProcess(server.pid).weight_bytes([weights], size) / size
    # Pages around one that is read are mapped with it.
    assert found == pytest.approx(share, abs=0.05)


def test_a_log_that_was_asked_for_stays(tmp_path):
    with Scripted(READY + SLEEP, log_file=tmp_path / "logs" / "server.log") as server:
        pass
    assert Path(server.log_file).read_text() == "ready\n"


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("print('no port left'); raise SystemExit(3)", TunelineError, "code 3: no port left"),
        ("raise SystemExit(1)", TunelineError, "it said nothing"),
        (DEAF + SLEEP, RetryableError, "no time left for the word"),
    ],
)
def test_one_that_ends_or_is_late_says_so_and_is_gone(code, error, said):
    server = Scripted(code, **({"start_seconds": 0.3} if error is RetryableError else {}))
    with pytest.raises(error, match=said):
        server.start()
    assert server.pids
    assert gone(server)


def test_one_that_does_not_heed_sigterm_is_killed_and_stop_may_come_late_and_twice():
    for code, end in ((DEAF + READY + SLEEP, None), (READY + SLEEP, signal.SIGKILL)):
        server = Scripted(code)
        server.start()
        if end:
            server.signal(end)
        server.stop()
        server.stop()
        assert server.pids
        assert gone(server)


def test_a_group_of_its_own_is_killed_whole():
    class Leader(Scripted):
        own_group = True

    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], "
    child += "stdin=subprocess.PIPE); print(p.pid, flush=True); "
    for end in (Leader.kill, Leader.stop):
        server = Leader(child + READY + SLEEP)
        server.start()
        worker = int(server.read_log().split()[0])
        assert os.getpgid(worker) == server.pid
        end(server)
        wait_for(lambda pid=worker: not os.path.exists(f"/proc/{pid}"))
        assert gone(server)
