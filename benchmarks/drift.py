"""Drift: how small a change is called, how often nothing is called drift, and what a night costs.

There is no peer: no library of the field states its false alarms over a year of looks. Detection is
of the first night of a watch. Windows without drift are drawn from prompts that the reference never
saw. Years are simulated from the scores of these prompts, since a year of nights takes minutes to
score; `benchmarks.texts.drift_nights` says how.

The data sets are not part of the project. A folder holds them as their repositories do:

    banking77/{train,test}.csv       PolyAI-LDN/task-specific-datasets, CC BY 4.0
    clinc_oos/data_full.json         clinc/oos-eval, CC BY 3.0
    gsm8k/test.jsonl                 openai/grade-school-math, MIT
    ifeval/input_data.jsonl          josejg/instruction_following_eval, Apache-2.0
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.contest.contest import Contest, Options, System
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import Job, Trial, read_lines
from benchmarks.texts.drift_nights import Pool, called, simulate, window_looks
from benchmarks.workloads.input_rows import read_texts, write_lines
from tuneline import __version__
from tuneline.asking.general_questions import load_questions
from tuneline.errors import UserError
from tuneline.governance.drift.bets import YEAR
from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Reference, texts_of
from tuneline.governance.drift.watch import compare

OURS = "tuneline"
WINDOW = 500
# Null windows, and years; a tenth of them measures detection.
DRAWS = 1000
RUNS = 5


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
    """Measure detection, and false alarms of one case."""
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
        add(metric, [called(reference, looks) for looks in seen])
    null = [window_looks(reference, [(usual, usual.draw(rng, case.window))]) for _ in range(draws)]
    add("false_alarms_per_window", [called(reference, looks) for looks in null])
    alarms = simulate(reference, usual, null, years=draws, nights=YEAR, window=case.window, rng=rng)
    add("false_alarms_per_year", [float(night < YEAR) for night in alarms])
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


FOLDER = "TUNELINE_BENCH_DATA"
SEED = 7
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
        name: suffix of its metrics; empty for the main case.
        validation: prompts of the same source, for the calibration.
        unseen: prompts of the same source that the reference never saw: no drift.
        plants: metric, share of a night and prompts of what is planted.
    """

    name: str
    train: list[Prompt]
    validation: list[Prompt]
    unseen: list[Prompt]
    plants: Mapping[str, tuple[float, list[Prompt]]]
    window: int


def data_folder(source: Path | None) -> Path | None:
    """Return the folder of the public sets, None if `source` is a file of the user.

    Args:
        source: file given by `--input`; `banking77/train.csv` names the folder as well.
    """
    if source is not None:
        folder = source.resolve().parent.parent
        return folder if source.parent.name == "banking77" else None
    return Path(os.environ.get(FOLDER) or "bench/data")


def public_cases(folder: Path, window: int) -> list[Case]:
    """Return the cases of the public sets.

    Raises:
        UserError: if a set is missing.
    """
    clinc = _json(folder / "clinc_oos" / "data_full.json")
    out_of_scope = [text for part in ("train", "val", "test") for text, _ in clinc[f"oos_{part}"]]
    banking = [
        row for part in ("train", "val", "test") for row in clinc[part] if row[1] in CLINC_BANKING
    ]
    train, test = (_csv(folder / "banking77" / f"{part}.csv") for part in ("train", "test"))
    main = _split(train, 1000)
    plants = {
        "detection_5pct_out_of_scope": (0.05, _prompts(out_of_scope)),
        "detection_10pct_neighbour": (0.1, _prompts([text for text, _ in banking])),
    }
    cases = [Case("", main[0], main[1], test, plants, window)]
    rng = np.random.default_rng(SEED)
    kept = rng.permutation(len(clinc["train"]))[:10_000]
    cases.append(
        Case(
            "_clinc",
            _labelled([clinc["train"][at] for at in kept]),
            _labelled(clinc["val"][::3]),
            _labelled(clinc["test"]),
            {
                "detection_5pct_out_of_scope": (0.05, _prompts(out_of_scope)),
                "detection_10pct_neighbour": (0.1, test),
            },
            window,
        )
    )
    sums = _prompts([row["question"] for row in _lines(folder / "gsm8k" / "test.jsonl")])
    tasks = _prompts([row["prompt"] for row in _lines(folder / "ifeval" / "input_data.jsonl")])
    known, unseen = _split(sums, 519)
    known, checked = _split(known, 100)
    long = {
        "detection_5pct_out_of_scope": (0.05, tasks),
        "detection_10pct_out_of_scope": (0.1, tasks),
    }
    cases.append(Case("_gsm8k", known, checked, unseen, long, min(window, 250)))
    return cases


def own_case(source: Path, rows: int | None, window: int) -> Case:
    """Return the case of a file of the user's own rows, with general questions planted."""
    prompts = _prompts(read_texts(source, rows))
    if len(prompts) < 100:
        raise UserError(f"{source} has {len(prompts)} prompts; at least 100 are needed")
    known, unseen = _split(prompts, len(prompts) // 4)
    train, checked = _split(known, len(known) // 10)
    general = _prompts([question.prompt for question in load_questions()])
    plants = {"detection_5pct_out_of_scope": (0.05, general)}
    return Case("", train, checked, unseen, plants, min(window, len(unseen) // 2))


def _split(prompts: Sequence[Prompt], size: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return all but `size` random prompts, and these."""
    order = np.random.default_rng(SEED).permutation(len(prompts))
    return [prompts[i] for i in order[size:]], [prompts[i] for i in order[:size]]


def _prompts(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(number, text) for number, text in enumerate(texts, 1)]


def _labelled(rows: Sequence[Sequence[str]]) -> list[Prompt]:
    return [Prompt(number, text, label) for number, (text, label) in enumerate(rows, 1)]


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; set {FOLDER} to a folder with banking77, clinc_oos, gsm8k and "
            "ifeval (benchmarks/drift.py says where they are from), or give rows "
            "of your own by --input"
        )
    return path


def _csv(path: Path) -> list[Prompt]:
    with _there(path).open(newline="", encoding="utf-8") as handle:
        return _labelled([(row["text"], row["category"]) for row in csv.DictReader(handle)])


def _json(path: Path) -> Any:
    return json.loads(_there(path).read_text(encoding="utf-8"))


def _lines(path: Path) -> list[Any]:
    with _there(path).open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]
