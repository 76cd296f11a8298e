"""One run of one system, in a separate process.

    python -m benchmarks.contest.trial benchmarks.texts.dedup_trials:rensa job.json sample.json

The function takes the job and returns a `Trial`; the sample holds time and memory of the run. A job
may name the `core` that the process is pinned to. It needs only Python's standard library, since it
also runs in the environment of the peers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuneline.machine.memory import resident_peak

# Items that are processed before the clock starts, so that a library's first use is not timed.
WARM_UP = 20

Job = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A system that is ready to work.

    Attributes:
        items: items to process, all in memory; `work` is timed over them.
        score: function that returns the quality of the output, by name; not timed.
        warm_up: True to process the first few items before the clock starts.
    """

    version: str
    items: Sequence[Any]
    work: Callable[[Sequence[Any]], Any]
    score: Callable[[Any], dict[str, float]]
    warm_up: bool = True


@dataclass(frozen=True)
class Sample:
    """Time, memory and quality of one run; other load hardly changes the CPU time."""

    version: str
    items: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    scores: dict[str, float]


def conduct(trial: Trial) -> Sample:
    """Warm a system up, time its work and score the output."""
    if trial.warm_up:
        trial.work(trial.items[:WARM_UP])
    started, cpu_started = time.perf_counter(), time.process_time()
    output = trial.work(trial.items)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    peak = round(resident_peak() / (1 << 20), 1)
    return Sample(trial.version, len(trial.items), seconds, cpu, peak, trial.score(output))


def read_lines(path: str) -> list[Any]:
    """Return the values of a JSONL file."""
    with Path(path).open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def write_lines(path: Path, values: Iterable[Any]) -> str:
    """Write values as JSONL, and return the path for a job."""
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(value) + "\n" for value in values)
    return str(path)


def version_of(*packages: str) -> str:
    """Return the versions of installed packages in the form of a result."""
    if len(packages) == 1:
        return version(packages[0])
    return ", ".join(f"{package} {version(package)}" for package in packages)


def main(arguments: list[str]) -> int:
    """Run the trial that the arguments name."""
    # Set before a library loads its OpenMP runtime: spinning workers slow everything else down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    where, job_file, out = arguments
    job = json.loads(Path(job_file).read_text())
    if job.get("core") is not None:
        # Set before libraries count the cores to size their thread pools.
        os.sched_setaffinity(0, {job["core"]})
    module, function = where.split(":")
    trial: Trial = getattr(import_module(module), function)(job)
    Path(out).write_text(json.dumps(asdict(conduct(trial))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
