"""One run of one system: what a worker process does and says.

Needs Python's own library only, since it also runs in the environment of the peers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.machine.peak_memory import resident_peak

# Items that are worked on before the clock runs: what a library does on first use is not timed.
WARM_UP = 20

Job = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A system, ready to work.

    Attributes:
        version: of the system.
        items: what it works on, all in memory.
        work: is timed; takes items, returns what `score` reads.
        score: quality of the output, by name; not timed.
        warm_up: whether to work on the first few items before the clock runs.
    """

    version: str
    items: Sequence[Any]
    work: Callable[[Sequence[Any]], Any]
    score: Callable[[Any], dict[str, float]]
    warm_up: bool = True


@dataclass(frozen=True)
class Sample:
    """What one run of one system took.

    Attributes:
        version: of the system.
        items: number of items.
        seconds: on the clock.
        cpu_seconds: of all threads; unlike `seconds` it hardly depends on what else runs.
        peak_mib: largest resident memory of the process up to the end of the work.
        scores: from the trial's `score`.
    """

    version: str
    items: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    scores: dict[str, float]


def conduct(trial: Trial) -> Sample:
    """Warm up, work against the clock, score."""
    if trial.warm_up:
        trial.work(trial.items[:WARM_UP])
    started, cpu_started = time.perf_counter(), time.process_time()
    output = trial.work(trial.items)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    peak = resident_peak() / (1 << 20)
    return Sample(
        trial.version, len(trial.items), seconds, cpu, round(peak, 1), trial.score(output)
    )


def read_lines(path: str) -> list[Any]:
    """The values of a JSONL file."""
    with Path(path).open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def write_sample(path: Path, sample: Sample) -> None:
    """Leave a sample for the process that started this one."""
    path.write_text(json.dumps(asdict(sample)))


def read_sample(path: Path) -> Sample:
    """What `write_sample` left."""
    return Sample(**json.loads(path.read_text()))
