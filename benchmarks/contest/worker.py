"""Run one trial in a separate process.

    python -m benchmarks.contest.worker benchmarks.texts.dedup_trials:rensa job.json sample.json

The function takes the job and returns a `Trial`; the sample holds time and memory of the run. A job
may name the `core` that the process is pinned to.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

# Set before a library loads its OpenMP runtime: spinning workers slow everything else down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str]) -> int:
    """Run the trial that the arguments name."""
    from benchmarks.contest.trial import Trial, conduct

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
