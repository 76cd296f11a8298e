"""The guard: `python -m localpods.guard FOLDER`.

The server holds the other end of the guard's standard input. When the server ends, even by
SIGKILL, the guard kills what the containers in the folder still run: no pod is left without a
server that watches its memory, its deadline and its log.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from localpods.processes import kill_marked


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start a guard over the containers in a folder; it acts once its input is closed."""
    package = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "localpods.guard", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": package},
        start_new_session=True,
    )


def main() -> None:
    """Wait for the end of the server, then kill what its containers run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
