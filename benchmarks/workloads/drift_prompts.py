"""Prompts of public data sets, for the benchmark of drift.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads.input_rows import read_texts
from tuneline.asking.general_questions import load_questions
from tuneline.errors import UserError
from tuneline.governance.drift.prompts import Prompt

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
        train: training prompts.
        validation: prompts of the same source, for the calibration.
        unseen: prompts of the same source that the reference never saw: no drift.
        plants: metric, share of a night and prompts of what is planted.
        window: prompts of a night.
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
            "ifeval (benchmarks/workloads/drift_prompts.py says where they are from), or give rows "
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
