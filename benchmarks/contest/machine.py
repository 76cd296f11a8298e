"""A description of the machine that measurements are taken on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Describe the processor, cores, accelerator and memory of this machine, and its load.

    Returns:
        `cpu`, `cores` (those that this process may use), `gpu` (None without one), `memory_gib`,
        `python`, and `load`: the mean number of running processes over the last minute. A load
        above the number of cores means that other work used some of them.
    """
    return {
        "cpu": _cpu(),
        "cores": len(usable_cores()),
        "gpu": _gpu(),
        "memory_gib": _memory_gib(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return round(size / (1 << 30), 1)


def _gpu() -> str | None:
    """Return the name of the first accelerator, by the driver's tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = answer.stdout.strip().splitlines()
    return names[0] if answer.returncode == 0 and names else None
