"""Describe the machine of a measurement and compare it with the declared hardware.

What decides a latency is compared, and nothing else: the GPU's name and count, or the CPU's model
and cores. A declared name is a list of words joined by dashes, and a machine's own name is one:

    laptop-cpu             the CPU of any machine
    epyc-16core-cpu        a CPU with "epyc" in its name, 16 cores of it
    nvidia-h100            at least one GPU with these words in its name
    2x-nvidia-h100-80gb    two of them
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tuneline.machine.cores import available_cores
from tuneline.serving.engines.engine import query_gpus

# Kinds of machines, which no CPU has in its name.
_KINDS = frozenset({"any", "ci", "cloud", "desktop", "laptop", "local", "server", "workstation"})
_CORES = re.compile(r"(\d+)cores?")
_COUNT = re.compile(r"(\d+)x")
# A slice of a GPU (MIG) is named after the whole one.
_SLICE = "mig"


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

    def computed_on(self, *, on_gpu: bool) -> str:
        """Return what an engine computed on, as a target: `epyc-9b14-2core-cpu`, `nvidia-l4`."""
        if not on_gpu:
            return "-".join([*_words(self.cpu), f"{self.cores}core", "cpu"])
        if not self.gpus:
            return "unknown-gpu"
        name = "-".join(_words(self.gpus[0]))
        return name if len(self.gpus) == 1 else f"{len(self.gpus)}x-{name}"


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


def _words(name: str) -> list[str]:
    """Return the words of a name: `NVIDIA A100-SXM4-80GB` has four, `Intel(R) Xeon(R)` two."""
    return re.findall(r"[a-z0-9.]+", re.sub(r"\((r|tm)\)", " ", name.lower()))


def any_machine(target: str) -> bool:
    """Return True if a target names a kind of machine alone, which any CPU is."""
    return set(_words(target)) <= _KINDS | {"cpu"}


def differences(target: str, machine: Machine, *, on_gpu: bool) -> list[str]:
    """Return in what a measurement differs from the declared hardware; nothing if it is valid.

    `on_gpu`: the engine used the GPU; a CPU engine next to an idle GPU measures the CPU.
    """
    words = _words(target)
    if words[-1:] == ["cpu"]:
        if on_gpu:
            return [f"{target} is declared, the engine ran on {machine.computed_on(on_gpu=True)}"]
        return _of_cpu(words[:-1], machine)
    if not on_gpu:
        return [f"{target} is declared, the engine ran on the CPU"]
    return _of_gpus(words, machine)


def _of_cpu(words: list[str], machine: Machine) -> list[str]:
    found = []
    cores = [int(match.group(1)) for word in words if (match := _CORES.fullmatch(word))]
    model = {word for word in words if word not in _KINDS and not _CORES.fullmatch(word)}
    lacking = sorted(model - set(_words(machine.cpu)))
    if lacking:
        found.append(f"the CPU is {machine.cpu}, not {' '.join(lacking)}")
    if cores and cores[0] != machine.cores:
        found.append(f"{machine.cores} cores instead of {cores[0]}")
    return found


def _of_gpus(words: list[str], machine: Machine) -> list[str]:
    counted = _COUNT.fullmatch(words[0]) if words else None
    model = set(words[1:] if counted else words)

    def matches(gpu: str) -> bool:
        name = set(_words(gpu))
        return model <= name and (_SLICE in name) == (_SLICE in model)

    matching = sum(matches(gpu) for gpu in machine.gpus)
    if not matching:
        return [f"the GPU is {', '.join(machine.gpus) or 'unknown'}, not {' '.join(sorted(model))}"]
    if counted and (wanted := int(counted.group(1))) != matching:
        return [f"{matching} GPUs of that name instead of {wanted}"]
    return []
