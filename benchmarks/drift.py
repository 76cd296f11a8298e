"""Drift: how small a change is called, how often nothing is called drift, and what a night costs.

There is no peer: no library of the field states its false alarms over a year of looks. Detection is
of the first night of a watch. Windows without drift are drawn from prompts that the reference never
saw. Years are simulated from the scores of these prompts, since a year of nights takes minutes to
score; `benchmarks.texts.drift_nights` says how.

The data sets are not part of the project. A folder holds them as their repositories do:

    banking77/{train,test}.csv       PolyAI-LDN/task-specific-datasets, CC BY 4.0
    clinc_oos/data_full.json         clinc/oos-eval, CC BY 3.0
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.contest.contest import SEED, Contest, Options, System
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import Job, Trial, read_lines, write_lines
from benchmarks.texts.drift_nights import simulate
from benchmarks.workloads.input_rows import read_texts
from tuneline import __version__
from tuneline.asking.general_questions import load_questions
from tuneline.errors import UserError
from tuneline.governance.drift.bets import YEAR
from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Reference, texts_of
from tuneline.governance.drift.rehearsal import drawn, is_called, night_looks
from tuneline.governance.drift.watch import compare

OURS = "tuneline"
WINDOW = 500
# Null windows, and years; a fifth of them measures detection.
DRAWS = 1000
RUNS = 5
FOLDER = "TUNELINE_BENCH_DATA"
# The fifteen intents of CLINC's domain "banking".
CLINC_BANKING = frozenset(
    "freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate "
    "min_payment bill_balance transfer order_checks balance spending_history transactions "
    "report_fraud".split()
)


@dataclass(frozen=True)
class Case:
    """A reference, and what may come after it.

    Attributes:
        validation: prompts of the same source, for the calibration.
        unseen: prompts of the same source that the reference never saw: no drift.
        plants: metric, share of a night and prompts of what is planted.
        window: prompts of a night.
    """

    train: list[Prompt]
    validation: list[Prompt]
    unseen: list[Prompt]
    plants: Mapping[str, tuple[float, list[Prompt]]]
    window: int


def run(options: Options) -> Report:
    """Measure detection, false alarms and seconds."""
    draws = options.runs or DRAWS
    folder = data_folder(options.input)
    if folder is None:
        assert options.input is not None
        case = own_case(options.input, options.rows, WINDOW)
    else:
        case = public_case(folder, options.rows or WINDOW)
    workload = {
        "rows": len(case.train),
        "mean_chars": round(fmean(len(text) for text in texts_of(case.train))),
        "seed": SEED,
        "window": case.window,
        "windows": draws,
        "years": draws,
        "validation": len(case.validation),
        "unseen": len(case.unseen),
    }
    return Report(workload, _alarms(case, draws, options) + _seconds(case, options), {})


def _alarms(case: Case, draws: int, options: Options) -> list[Result]:
    """Measure detection, and false alarms."""
    rng = np.random.default_rng(SEED)
    reference = Reference.fit(case.train, case.validation)
    usual = reference.night("", case.unseen)
    results: list[Result] = []

    def add(metric: str, values: Sequence[float]) -> None:
        # The mean is the share; `runs` is the number of windows or years that it is of.
        mean = summarise(OURS, __version__, metric, [fmean(values)], "share")
        results.append(replace(mean, runs=len(values)))
        options.log(f"{metric}: {fmean(values):.4g} of {len(values)}")

    for metric, (share, rows) in case.plants.items():
        planted = reference.night("", rows)
        count = min(round(case.window * share), len(rows))
        seen = []
        for _ in range(max(1, draws // 5)):
            parts = [drawn(rng, usual, case.window - count), drawn(rng, planted, count)]
            seen.append(is_called(reference, night_looks(reference, parts)))
        add(metric, seen)
    null = [dict(night_looks(reference, [drawn(rng, usual, case.window)])) for _ in range(draws)]
    add("false_alarms_per_window", [is_called(reference, looks.items()) for looks in null])
    alarms = simulate(reference, usual, null, years=draws, nights=YEAR, window=case.window, rng=rng)
    add("false_alarms_per_year", [float(night < YEAR) for night in alarms])
    return results


def _seconds(case: Case, options: Options) -> list[Result]:
    """Measure the seconds of a night, and of the calibration before the first."""
    texts, night = texts_of(case.train), texts_of(case.unseen[: case.window])
    job = {
        "train": write_lines(options.folder / "train.jsonl", texts),
        "window": write_lines(options.folder / "window.jsonl", night),
    }
    contest = Contest(options, one_core=True)
    system = System(OURS, "benchmarks.drift:one_night")
    samples = contest.measure([system], job, min(RUNS, options.runs or RUNS))[OURS]
    found = (
        ("seconds_per_window", [s.seconds for s in samples], "s"),
        ("seconds_to_calibrate", [s.scores["calibrate"] for s in samples], "s"),
        ("peak_memory", [s.peak_mib for s in samples], "MiB"),
    )
    return [summarise(OURS, __version__, metric, values, unit) for metric, values, unit in found]


def one_night(job: Job) -> Trial:
    """Look at one night, from texts to a report."""
    train, window = (_prompts(read_lines(job[name])) for name in ("train", "window"))
    started = time.perf_counter()
    reference = Reference.fit(train)
    spent = time.perf_counter() - started

    def work(prompts: Sequence[Any]) -> Any:
        return compare(reference, {"2026-01-01": list(prompts)})

    return Trial(__version__, window, work, lambda _: {"calibrate": spent})


def data_folder(source: Path | None) -> Path | None:
    """Return the folder of the public sets, None if `source` is a file of the user.

    `banking77/train.csv` names the folder as well.
    """
    if source is not None:
        return source.resolve().parents[1] if source.parent.name == "banking77" else None
    return Path(os.environ.get(FOLDER) or "bench/data")


def public_case(folder: Path, window: int) -> Case:
    """Return the case of the public sets; one that is missing is named."""
    clinc = json.loads(_there(folder / "clinc_oos" / "data_full.json").read_text(encoding="utf-8"))
    parts = ("train", "val", "test")
    out_of_scope = [text for part in parts for text, _ in clinc[f"oos_{part}"]]
    banking = [text for part in parts for text, label in clinc[part] if label in CLINC_BANKING]
    train, test = (_csv(folder / "banking77" / f"{part}.csv") for part in ("train", "test"))
    plants = {
        "detection_5pct_out_of_scope": (0.05, _prompts(out_of_scope)),
        "detection_10pct_neighbour": (0.1, _prompts(banking)),
    }
    return Case(*_split(train, 1000), test, plants, window)


def own_case(source: Path, rows: int | None, window: int) -> Case:
    """Return the case of a file of the user's own rows, with general questions planted."""
    prompts = _prompts(read_texts(source, rows))
    if len(prompts) < 100:
        raise UserError(f"{source} has {len(prompts)} prompts; at least 100 are needed")
    known, unseen = _split(prompts, len(prompts) // 4)
    general = _prompts([question.prompt for question in load_questions()])
    plants = {"detection_5pct_out_of_scope": (0.05, general)}
    return Case(*_split(known, len(known) // 10), unseen, plants, min(window, len(unseen) // 2))


def _split(prompts: Sequence[Prompt], size: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return all but `size` random prompts, and these."""
    order = np.random.default_rng(SEED).permutation(len(prompts))
    return [prompts[i] for i in order[size:]], [prompts[i] for i in order[:size]]


def _prompts(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(number, text) for number, text in enumerate(texts, 1)]


def _csv(path: Path) -> list[Prompt]:
    with _there(path).open(newline="", encoding="utf-8") as handle:
        rows = enumerate(csv.DictReader(handle), 1)
        return [Prompt(number, row["text"], row["category"]) for number, row in rows]


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; set {FOLDER} to a folder with banking77 and clinc_oos "
            "(benchmarks/drift.py says where they are from), or give rows of your own by --input"
        )
    return path
