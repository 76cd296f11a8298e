"""Describe the machine of a measurement and compare it with the declared hardware."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tuneline.machine.cores import available_cores
from tuneline.serving.engines.identity import query_gpus


@dataclass(frozen=True)
class Machine:
    """The hardware that a latency depends on; `cores` are those that this process may use."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]

    def text(self) -> str:
        """Return the machine in one line."""
        gpus = f", {', '.join(self.gpus)}" if self.gpus else ", no GPU"
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB{gpus}"


def this_machine() -> Machine:
    """Return the machine of this process."""
    import psutil

    return Machine(
        cpu=_cpu_name(Path("/proc/cpuinfo")),
        cores=available_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=tuple(gpu["name"] for gpu in query_gpus()),
    )


def _cpu_name(cpuinfo: Path) -> str:
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        if match:
            return " ".join(match.group(1).split())
    return "unknown CPU"


def is_target(target: str, machine: Machine, *, on_gpu: bool) -> bool:
    """Return True if a measurement on a machine is valid for the declared hardware.

    Args:
        target: `deployment.target_hardware`: a name that ends in `cpu` for any machine on
            whose CPU the engine runs, or words of a GPU's name joined by dashes
            (`nvidia-h100`).
        machine: the machine of the measurement.
        on_gpu: True if the engine used the GPU; a CPU engine beside an idle GPU measures the
            CPU.
    """
    words = target.lower().split("-")
    if words[-1] == "cpu":
        return not on_gpu
    return on_gpu and any(set(words) <= set(name.lower().split()) for name in machine.gpus)
