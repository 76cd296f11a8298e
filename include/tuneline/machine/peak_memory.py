"""The most memory that this process has held so far, and the errors that say it was too much."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path
from typing import Any

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def peak_memory(torch: Any, device: str) -> int:
    """Peak bytes of this process: reserved on a GPU, resident on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return resident_peak()


def restart_peak(torch: Any, device: str) -> None:
    """Give free memory back and let the peak begin again at what is in use.

    On Linux the mark goes back when 5 is written to `clear_refs` (proc(5)); elsewhere on a CPU
    the old peak stays.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Largest resident memory of this process so far, bytes.

    `ru_maxrss` on Linux also counts what the process was before `exec`, that is its parent;
    the kernel's own mark for this program does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign.lower() in said for sign in _SIGNS)
