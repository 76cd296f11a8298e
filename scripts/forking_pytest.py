"""Run pytest in forks of a process that has the slow imports behind it.

`forking_pytest.py MODULE…` imports the modules, then reads a line of JSON for each run from stdin:
`{"id": …, "arguments": […], "log": file}`. It answers with the line `id exit_code cpu_seconds`.
Nothing but imports is shared between runs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
from importlib.util import find_spec
from typing import Any

from supervised import MARK

_USED = ("pytest_timeout", "_hypothesis_pytestplugin", "schemathesis.pytest.plugin")
# The Airflow environment has no schemathesis.
PLUGINS = [name for name in _USED if find_spec(name.partition(".")[0])]


def main() -> None:
    """Serve runs until stdin is closed and the last one has ended."""
    # Looking for plugins reads the metadata of every package, a second for each file.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # Ctrl-C reaches every process of the terminal; the runs answer to it, this one waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet = open(os.devnull, "w")  # noqa: SIM115 - for the whole process
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        for module in (*PLUGINS, *sys.argv[1:]):
            importlib.import_module(module)
    # The runs share the memory of what was imported as long as nothing moves it.
    gc.collect()
    gc.freeze()
    running: dict[int, str] = {}
    reading, unread = True, b""
    while reading or running:
        if reading and select.select([0], [], [], 0.05)[0]:
            chunk = os.read(0, 1 << 16)
            reading = bool(chunk)
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                running[_start(asked)] = asked["id"]
        while running:
            pid, status, used = os.wait4(-1, 0 if not reading else os.WNOHANG)
            if not pid:
                break
            code = os.waitstatus_to_exitcode(status)
            seconds = used.ru_utime + used.ru_stime
            os.write(1, f"{running.pop(pid)} {code} {seconds:.1f}\n".encode())


def _start(asked: dict[str, Any]) -> int:
    """Fork; the child runs pytest with its output in a file, the parent gets its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ[MARK] = asked["id"]
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import pytest

        plugins = [part for name in PLUGINS for part in ("-p", name)]
        code = int(pytest.main([*plugins, *asked["arguments"]]))
    finally:
        # Like an end of the interpreter that waits for no thread which a test left behind.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
