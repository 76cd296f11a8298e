"""Measure systems in turn: A B A B …, each run in a separate process.

Other load on the machine affects all systems alike, and no system profits from what another left in
memory. Single-core benchmarks pin every system to the same core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest.report import Result, summarise
from benchmarks.contest.trial import Sample
from tuneline.errors import TunelineError
from tuneline.machine.checkout import project_root
from tuneline.machine.child_environment import child_environment

Log = Callable[[str], None]

RUN_SECONDS = 1800.0
INSTALL = "`make bench` builds the environment of the peers"


@dataclass(frozen=True)
class Options:
    """Settings of one benchmark.

    Attributes:
        folder: folder for its files, deleted afterwards.
        log: function that takes one line of progress.
        input: file of rows to use in place of generated ones.
        runs: number of runs of each system, None for the benchmark's default.
        rows: number of rows to generate or to take of the input, None for the default or all.
    """

    folder: Path
    log: Log
    input: Path | None = None
    runs: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class System:
    """A system to measure.

    Attributes:
        trial: `module:function`, see `trial`.
        options: settings that are added to the job.
        python: interpreter that has it installed, None for this one.
    """

    name: str
    trial: str
    options: Mapping[str, Any] | None = None
    python: Path | None = None


class Contest:
    """Runs systems in turn.

    Args:
        log: function that takes one line after each run.
        one_core: True to pin each run to one core and its libraries to one thread.
    """

    def __init__(self, folder: Path, log: Log, *, one_core: bool) -> None:
        self._folder = folder
        self._log = log
        self._one_core = one_core

    def measure(
        self, systems: Sequence[System], job: Mapping[str, Any], runs: int
    ) -> dict[str, list[Sample]]:
        """Run every system `runs` times, in turn.

        Returns:
            Samples of each system, by its name.

        Raises:
            TunelineError: if a run failed or left no sample; the message has its last line.
        """
        samples: dict[str, list[Sample]] = {system.name: [] for system in systems}
        for number in range(1, runs + 1):
            for system in systems:
                sample = self.run(system, job)
                samples[system.name].append(sample)
                self._log(f"run {number} of {runs}: {system.name} {sample.seconds:.2f} s")
        return samples

    def run(self, system: System, job: Mapping[str, Any]) -> Sample:
        """Run one system once."""
        job_file, out = self._folder / "job.json", self._folder / "sample.json"
        core = max(os.sched_getaffinity(0)) if self._one_core else None
        job_file.write_text(json.dumps({"core": core, **job, **(system.options or {})}))
        out.unlink(missing_ok=True)
        python = str(system.python or sys.executable)
        command = [python, "-m", "benchmarks.contest.trial", system.trial, str(job_file), str(out)]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env=self._environment(),
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            waited = time.monotonic() - started
            raise TunelineError(f"{system.name} was not done after {waited:.0f} s") from None
        if done.returncode or not out.is_file():
            words = (done.stderr or done.stdout).strip().splitlines()
            raise TunelineError(
                f"{system.name} failed (exit code {done.returncode}): "
                f"{words[-1] if words else 'it printed nothing'}"
            )
        return Sample(**json.loads(out.read_text()))

    def _environment(self) -> dict[str, str]:
        environment = child_environment(project_root(), OMP_WAIT_POLICY="PASSIVE")
        if self._one_core:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
            environment.update(dict.fromkeys(names, "1"))
        return environment


def speed_results(
    samples: Mapping[str, Sequence[Sample]], amount: str, total: float | None = None
) -> list[Result]:
    """Return speed, memory and scores of each system.

    Args:
        samples: samples of each system.
        amount: unit of work (`docs`), so that the metric is `docs_per_s`.
        total: amount that a run works through, None for its number of items.
    """
    results = []
    for name, runs in samples.items():
        version = runs[0].version
        per_second = [(total or s.items) / s.seconds for s in runs]
        per_cpu = [(total or s.items) / s.cpu_seconds for s in runs]
        peak = [s.peak_mib for s in runs]
        results += [
            summarise(name, version, f"{amount}_per_s", per_second, "1/s"),
            summarise(name, version, f"{amount}_per_cpu_s", per_cpu, "1/s"),
            summarise(name, version, "peak_memory", peak, "MiB"),
            *score_results(name, runs),
        ]
    return results


def score_results(name: str, runs: Sequence[Sample]) -> list[Result]:
    """Return the scores of one system, each over its runs."""
    return [
        summarise(name, runs[0].version, metric, [s.scores[metric] for s in runs], "share")
        for metric in runs[0].scores
    ]


def bench_python() -> Path:
    """Return the interpreter of the peers: `$TUNELINE_BENCH_PYTHON` or that of `.venv-bench`."""
    named = os.environ.get("TUNELINE_BENCH_PYTHON")
    return Path(named) if named else project_root() / ".venv-bench" / "bin" / "python"


def why_missing(module: str, python: Path | None = None) -> str | None:
    """Return the reason that a peer can't be measured, None if it can.

    Args:
        python: interpreter that should have it installed, None for this one.
    """
    if python is not None and not python.is_file():
        return f"there is no {python}; {INSTALL}"
    question = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    command = [str(python or sys.executable), "-c", question]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode == 0:
        return None
    where = f"the environment of {python}" if python else "this environment"
    return f"{module} is not installed in {where}"
