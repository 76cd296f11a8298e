"""Which process has an id: ids are used again, and the system's clock is set."""

from __future__ import annotations

from pathlib import Path

# Of the fields behind the name of the program; proc(5) calls it `starttime`, the 22nd.
_START_TICKS = 19


def started(pid: int) -> str | None:
    """Return the start of a process, in ticks of one boot of the machine; None if there is none.

    A step of the system's clock does not move it, as it does the time of day that psutil makes of
    it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The name, in parentheses, may hold blanks and parentheses.
    return f"{boot}:{stat.rpartition(')')[2].split()[_START_TICKS]}"
