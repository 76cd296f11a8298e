"""Runs whose blind review is prepared, and people who vote in it."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from tests.lab.runs import Lab, dataset_rows

from tuneline.artifacts.evaluation import REVIEW_KEY, KeyEntry, Mark, Source
from tuneline.people import ballots


def leave_answers(bench: Lab, holdout: int = 12, *, equal: int = 0, released: bool = False) -> None:
    """Leave what `prepare_review` reads: hold-out rows, what ships, and the answers to each row.

    Args:
        bench: the run.
        holdout: hold-out rows.
        equal: rows on which tuned and base answer alike.
        released: whether a released model was asked too.
    """
    rows = dataset_rows({"train": 30, "validation": 5, "holdout": holdout})
    bench.leave_dataset(rows)
    choice = '{"variant": "f16", "sha256": "c0ffee"}'
    bench.leave("production_quantization", {"choice.json": choice})
    held = [row["row_id"] for row in rows if row["split"] == "holdout"]
    files = {"answers.jsonl": _lines(_answers(held, equal))}
    if released:
        old = [{"row_id": name, "expected": "x", "released": f"old {name}"} for name in held]
        files["released_answers.jsonl"] = _lines(old)
    bench.leave("holdout_performance", files)


def _answers(held: list[str], equal: int) -> Iterable[dict[str, str]]:
    for number, name in enumerate(held):
        tuned = f'{{"intent": "login", "reply": "tuned {number}"}}'
        base = tuned if number < equal else f"base prose {number}"
        yield {"row_id": name, "expected": "x", "base": base, "tuned": tuned}


def _lines(entries: Iterable[dict[str, str]]) -> str:
    return "\n".join(map(json.dumps, entries))


def prepared(bench: Lab, **options: Any) -> list[KeyEntry]:
    """Prepare the review of a run; its key, which only tests may look into."""
    leave_answers(bench, **options)
    bench.execute("prepare_review")
    return key_of(bench).pairs


def key_of(bench: Lab) -> Any:
    """The key of the review."""
    return REVIEW_KEY.find(bench.run)


def for_model(name: str) -> Callable[[KeyEntry], str]:
    """Vote for the side that a model is on, and tie where it is on none."""
    return lambda entry: {entry.A: "A", entry.B: "B"}.get(name, "tie")


def vote(
    bench: Lab,
    key: Iterable[KeyEntry],
    choose: Callable[[KeyEntry], str],
    reviewers: Iterable[str] = ("alice",),
    source: Source = "airflow",
    **options: Any,
) -> None:
    """Have each reviewer cast one ballot on all pairs of a key."""
    marks = [Mark(pair=entry.pair, choice=choose(entry)) for entry in key]
    for reviewer in reviewers:
        ballots.cast(bench.run, key_of(bench).review_id, reviewer, source, marks, **options)
