"""Measure systems in turn: A B A B …, each run in a separate process.

Other load on the machine affects all systems alike, and no system profits from what another left in
memory. Single-core benchmarks pin every system to the same core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest.report import NotMeasured, Ratio, Result, summarise
from benchmarks.contest.trial import Sample
from tuneline.errors import TunelineError
from tuneline.machine.checkout import project_root
from tuneline.machine.child_environment import child_environment

Log = Callable[[str], None]

RUN_SECONDS = 1800.0
# Of all workloads.
SEED = 7
INSTALL = "`make bench` builds the environment of the peers"


@dataclass(frozen=True)
class Options:
    """Settings of one benchmark; where `runs` or `rows` is None, its defaults apply."""

    folder: Path
    log: Log
    input: Path | None = None
    runs: int | None = None
    rows: int | None = None

    @property
    def source(self) -> dict[str, Any]:
        """The origin of the rows, as the report states it."""
        return {"input": self.input.name} if self.input else {"seed": SEED}


@dataclass(frozen=True)
class System:
    """A system to measure.

    Attributes:
        trial: `module:function`, see `trial`.
        options: settings that are added to the job.
        needs: modules that must be installed for it.
        peer: True if it runs in the environment of the peers.
    """

    name: str
    trial: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    peer: bool = False

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return bench_python() if self.peer else Path(sys.executable)


@dataclass(frozen=True)
class Contest:
    """Runs systems in turn; with `one_core` each run has one core and its libraries one thread."""

    options: Options
    one_core: bool

    def measure(
        self, systems: Sequence[System], job: Mapping[str, Any], runs: int
    ) -> dict[str, list[Sample]]:
        """Run every system `runs` times, in turn; a job's `seed` grows by one each round.

        Returns:
            Samples of each system, by its name.

        Raises:
            TunelineError: if a run failed or left no sample; the message has its last line.
        """
        samples: dict[str, list[Sample]] = {system.name: [] for system in systems}
        for number in range(runs):
            seeded = {**job, "seed": job["seed"] + number} if "seed" in job else job
            for system in systems:
                sample = self.run(system, seeded)
                samples[system.name].append(sample)
                self.options.log(
                    f"run {number + 1} of {runs}: {system.name} {sample.seconds:.2f} s"
                )
        return samples

    def run(self, system: System, job: Mapping[str, Any]) -> Sample:
        """Run one system once."""
        job_file, out = (self.options.folder / name for name in ("job.json", "sample.json"))
        environment = child_environment(project_root(), OMP_WAIT_POLICY="PASSIVE")
        core = None
        if self.one_core:
            core = max(os.sched_getaffinity(0))
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
            environment.update(dict.fromkeys(names, "1"))
        job_file.write_text(json.dumps({"core": core, **job, **system.options}))
        out.unlink(missing_ok=True)
        module = ["-m", "benchmarks.contest.trial", system.trial]
        try:
            done = subprocess.run(
                [str(system.python), *module, str(job_file), str(out)],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TunelineError(f"{system.name} was not done after {RUN_SECONDS:.0f} s") from None
        if done.returncode or not out.is_file():
            words = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
            raise TunelineError(f"{system.name} failed (exit code {done.returncode}): {words[-1]}")
        return Sample(**json.loads(out.read_text()))


def speed_results(
    samples: Mapping[str, Sequence[Sample]], amount: str, total: float | None = None
) -> list[Result]:
    """Return speed, memory and scores of each system.

    Args:
        amount: unit of work (`docs`), so that the metric is `docs_per_s`.
        total: amount that a run works through, None for its number of items.
    """
    results = []
    for name, runs in samples.items():
        version = runs[0].version
        for metric, values, unit in (
            (f"{amount}_per_s", [(total or s.items) / s.seconds for s in runs], "1/s"),
            (f"{amount}_per_cpu_s", [(total or s.items) / s.cpu_seconds for s in runs], "1/s"),
            ("peak_memory", [s.peak_mib for s in runs], "MiB"),
        ):
            results.append(summarise(name, version, metric, values, unit))
        results += score_results(name, runs)
    return results


def score_results(name: str, runs: Sequence[Sample]) -> list[Result]:
    """Return the scores of one system, each over its runs."""
    return [
        summarise(name, runs[0].version, metric, [s.scores[metric] for s in runs], "share")
        for metric in runs[0].scores
    ]


def installed(
    systems: Iterable[System], ratios: Mapping[str, Ratio]
) -> tuple[list[System], list[NotMeasured]]:
    """Return the systems that can be measured, and the others with the ratios that are lost."""
    present, missing = [], []
    for system in systems:
        reason = next(filter(None, (why_missing(m, system.python) for m in system.needs)), None)
        if reason is None:
            present.append(system)
        else:
            lost = tuple(name for name, ratio in ratios.items() if system.name in ratio)
            missing.append(NotMeasured(system.name, reason, lost))
    return present, missing


def bench_python() -> Path:
    """Return the interpreter of the peers: `$TUNELINE_BENCH_PYTHON` or that of `.venv-bench`."""
    named = os.environ.get("TUNELINE_BENCH_PYTHON")
    return Path(named) if named else project_root() / ".venv-bench" / "bin" / "python"


def why_missing(module: str, python: Path) -> str | None:
    """Return the reason that an interpreter lacks a module, None if it has it."""
    if not python.is_file():
        return f"there is no {python}; {INSTALL}"
    question = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    done = subprocess.run([str(python), "-c", question], capture_output=True, check=False)
    return f"{module} is not installed for {python}" if done.returncode else None
