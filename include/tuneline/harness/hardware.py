"""The machine that a measurement was made on, and whether it is the one that was promised."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.machine.cores import available_cores
from tuneline.serving.engines.identity import query_gpus


@dataclass(frozen=True)
class Machine:
    """What a latency depends on."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]

    def text(self) -> str:
        """One line a person can read."""
        gpus = f", {', '.join(self.gpus)}" if self.gpus else ", no GPU"
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB{gpus}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """Describe the machine, with the cores that this process may use."""
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
    """Whether a measurement on this machine speaks for the declared hardware.

    Args:
        target: `deployment.target_hardware`: a name that ends in `cpu` for any machine
            whose CPU does the work, or words of a GPU's name joined by dashes
            (`nvidia-h100`).
        machine: where it was measured.
        on_gpu: whether the engine used the GPU; a CPU engine beside an idle GPU measures
            the CPU.
    """
    words = target.lower().split("-")
    if words[-1] == "cpu":
        return not on_gpu
    return on_gpu and any(set(words) <= set(name.lower().split()) for name in machine.gpus)
