"""A description of the machine that measurements are taken on."""

from __future__ import annotations

import os
import platform
from typing import Any


def describe() -> dict[str, Any]:
    """Describe the processor, cores, accelerator and memory of this machine, and its load.

    Returns:
        `cpu`, `cores` (those that this process may use), `gpu` (None without one), `memory_gib`,
        `python`, and `load`: the mean number of running processes over the last minute. A load
        above the number of cores means that other work used some of them.
    """
    from tuneline.asking.hardware import this_machine

    machine = this_machine()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "gpu": machine.gpus[0] if machine.gpus else None,
        "memory_gib": machine.memory_gib,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
