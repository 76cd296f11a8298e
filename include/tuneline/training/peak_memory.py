"""The most memory that this process has held so far."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any


def peak_memory(torch: Any, device: str) -> int:
    """Peak bytes of this process: reserved on a GPU, resident on a CPU.

    `ru_maxrss` on Linux also counts what the process was before `exec`, that is its parent;
    the kernel's own mark for this program does not.
    """
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
