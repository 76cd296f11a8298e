"""Run a server that starts processes of its own, and let none of them outlive it.

The caller makes the supervisor the leader of a process group. It forwards SIGTERM and SIGINT to the
server, ends it when standard input closes, that is with the process that started the supervisor,
and kills what is left of the group once the server has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

# Time to drain after standard input has closed, in seconds.
GRACE_SECONDS = 30.0


def supervise(command: Sequence[str]) -> int:
    """Run a server until it ends, a signal arrives or standard input closes.

    Returns:
        Its exit code, as a shell gives it: 128 and the number of a signal that ended it.
    """
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.send_signal(number))
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    code = server.wait()
    _kill_rest_of_group()
    return code if code >= 0 else 128 - code


def _end_with_input(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    server.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)
    # Still here: the server hangs. The group includes this process.
    os.killpg(0, signal.SIGKILL)


def _kill_rest_of_group() -> None:
    """Kill the other processes of this process group, if this process leads it."""
    own = os.getpid()
    if os.getpgrp() != own:
        return
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        try:
            if os.getpgid(int(name)) == own:
                os.kill(int(name), signal.SIGKILL)
        except ProcessLookupError:
            continue
