"""Drift: how small a change is called, how often nothing is called drift, and what a night costs.

There is no peer: no library of the field states its false alarms over a year of looks. Detection is
over windows of one night, with nothing seen before, on the first night of a watch and on the
hundredth (`…_late`), which has a smaller share of the budget. Windows without drift are drawn from
prompts that the reference never saw. Years are simulated from the scores of these prompts, since a
year of nights takes minutes to score; `benchmarks.texts.drift_nights` says how.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.contest.contest import Contest, System
from benchmarks.contest.options import Options
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import Job, Trial, read_lines
from benchmarks.texts.drift_nights import Drift, Pool, called, simulate, window_looks
from benchmarks.workloads.drift_prompts import (
    SEED,
    Case,
    data_folder,
    own_case,
    public_cases,
)
from benchmarks.workloads.input_rows import write_lines
from tuneline import __version__
from tuneline.governance.drift.budget import YEAR
from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Reference, texts_of
from tuneline.governance.drift.watch import compare

OURS = "tuneline"
WINDOW = 500
# Null windows, and years; a tenth of them measures detection.
DRAWS = 1000
RUNS = 5
LATE = 100
# Planted shares whose delay is measured, of the first plant of a case.
DELAYED_SHARES = {"1pct": 0.01, "2pct": 0.02}
DRIFT_NIGHT = 30
MOST_DELAY = 120


def run(options: Options) -> Report:
    """Measure all cases."""
    draws = options.runs or DRAWS
    folder = data_folder(options.input)
    if folder is None:
        assert options.input is not None
        cases = [own_case(options.input, options.rows, WINDOW)]
    else:
        cases = public_cases(folder, options.rows or WINDOW)
    results: list[Result] = []
    for case in cases:
        results += _case(case, draws, options)
    main = cases[0]
    workload = {
        "rows": len(main.train),
        "mean_chars": round(fmean(len(text) for text in texts_of(main.train))),
        "seed": SEED,
        "window": main.window,
        "windows": draws,
        "years": draws,
        "validation": len(main.validation),
        "unseen": len(main.unseen),
    }
    return Report(workload, results + _seconds(main, options), {})


def _case(case: Case, draws: int, options: Options) -> list[Result]:
    """Measure detection, false alarms and delay of one case."""
    rng = np.random.default_rng(SEED)
    reference = Reference.fit(case.train, case.validation)
    usual = Pool.of(reference, case.unseen)
    results: list[Result] = []

    def add(metric: str, values: Sequence[float], unit: str = "share") -> None:
        # The mean is the share; `runs` is the number of windows or years that it is of.
        mean = summarise(OURS, __version__, f"{metric}{case.name}", [fmean(values)], unit)
        results.append(Result(**{**mean.__dict__, "runs": len(values)}))
        options.log(f"{metric}{case.name}: {fmean(values):.4g} of {len(values)}")

    pools = {metric: Pool.of(reference, rows) for metric, (_, rows) in case.plants.items()}
    for metric, (share, rows) in case.plants.items():
        count = min(round(case.window * share), len(rows))
        seen = [
            window_looks(
                reference,
                [
                    (usual, usual.draw(rng, case.window - count)),
                    (pools[metric], pools[metric].draw(rng, count)),
                ],
            )
            for _ in range(max(1, draws // 5))
        ]
        add(metric, [called(reference, looks, 0) for looks in seen])
        add(f"{metric}_late", [called(reference, looks, LATE) for looks in seen])
    null = [window_looks(reference, [(usual, usual.draw(rng, case.window))]) for _ in range(draws)]
    add("false_alarms_per_window", [called(reference, looks, 0) for looks in null])
    common: dict[str, Any] = {"window": case.window, "rng": rng}
    alarms = simulate(reference, usual, null, years=draws, nights=YEAR, **common)
    add("false_alarms_per_year", [float(night < YEAR) for night in alarms])
    first = next(iter(pools.values()))
    for name, share in DELAYED_SHARES.items():
        found = simulate(
            reference,
            usual,
            null,
            years=max(1, draws // 5),
            drift=Drift(first, share, DRIFT_NIGHT),
            nights=DRIFT_NIGHT + MOST_DELAY,
            **common,
        )
        after = found[found >= DRIFT_NIGHT] - DRIFT_NIGHT + 1
        add(f"delay_{name}_out_of_scope", [float(np.median(after))], "nights")
        add(f"delay_p90_{name}_out_of_scope", [float(np.quantile(after, 0.9))], "nights")
    return results


def _seconds(case: Case, options: Options) -> list[Result]:
    """Measure the seconds of a night, and of the calibration before the first."""
    job = {
        "train": write_lines(options.folder / "train.jsonl", texts_of(case.train)),
        "window": write_lines(
            options.folder / "window.jsonl", texts_of(case.unseen[: case.window])
        ),
    }
    contest = Contest(options.folder, options.log, one_core=True)
    system = System(OURS, "benchmarks.drift:one_night")
    samples = contest.measure([system], job, min(RUNS, options.runs or RUNS))[OURS]
    version = samples[0].version
    return [
        summarise(OURS, version, "seconds_per_window", [s.seconds for s in samples], "s"),
        summarise(
            OURS, version, "seconds_to_calibrate", [s.scores["calibrate"] for s in samples], "s"
        ),
        summarise(OURS, version, "state_size", [s.scores["state"] for s in samples], "KiB"),
        summarise(OURS, version, "peak_memory", [s.peak_mib for s in samples], "MiB"),
    ]


def one_night(job: Job) -> Trial:
    """Look at one night, from texts to a report."""
    train, window = (
        [Prompt(number, text) for number, text in enumerate(read_lines(job[name]), 1)]
        for name in ("train", "window")
    )
    started = time.perf_counter()
    reference = Reference.fit(train)
    spent = time.perf_counter() - started

    def score(report: Any) -> dict[str, float]:
        size = len(json.dumps(report.state.as_dict()))
        return {"calibrate": spent, "state": size / 1024}

    def work(prompts: Sequence[Any]) -> Any:
        return compare(reference, {"2026-01-01": list(prompts)})

    return Trial(__version__, window, work, score)
