"""The numbers that describe how good a released model is, as its evidence holds them.

A number counts only if its item measured to its end, and on the bytes that the release ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuneline.governance.documents.facts import Facts


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        item: the item that measured it.
        name: its name for a person.
        kind: its id on https://hf.co/metrics; `accuracy` for a share of right answers.
        value: the number.
        lower: lower end of its 95 % interval; None if it has none.
        upper: upper end.
        base: what the base model reached; None if it was not asked.
        rows: number of rows or questions.
        slice: what it was measured on.
    """

    item: str
    name: str
    kind: str
    value: float
    lower: float | None = None
    upper: float | None = None
    base: float | None = None
    rows: int | None = None
    slice: str = ""


# Ids of metrics by their names; a name that is none of these is a share of right answers.
_KINDS = {"exact match": "exact_match", "chrF": "chrf", "ROUGE-L": "rouge"}


def metrics(facts: Facts) -> list[Metric]:
    """Return what was measured on the shipped bytes; nothing for an item that was not run."""
    return [*_holdout(facts), *_general(facts)]


def _holdout(facts: Facts) -> Iterator[Metric]:
    one = facts.items["holdout_performance"]
    if not facts.on_shipped_bytes(one.item.id):
        return
    name = str(one.value("metric") or "share of right answers")
    rows = one.value("holdout_rows")
    for measured, title, kind in (
        ("metric", name, _kind(name)),
        ("macro_f1", "macro-F1", "f1"),
    ):
        value = one.value(f"tuned_{measured}")
        # The task's metric may be the macro-F1 itself.
        if _is_number(value) and not (measured == "macro_f1" and _kind(name) == "f1"):
            yield Metric(
                one.item.id,
                title,
                kind,
                value,
                one.value(f"tuned_{measured}_lower"),
                one.value(f"tuned_{measured}_upper"),
                one.value(f"base_{measured}"),
                rows,
                "hold-out",
            )


def _general(facts: Facts) -> Iterator[Metric]:
    one = facts.items["base_regression"]
    value = one.value("tuned_share")
    if facts.on_shipped_bytes(one.item.id) and _is_number(value):
        yield Metric(
            one.item.id,
            "general questions answered right",
            "accuracy",
            value,
            base=one.value("base_share"),
            rows=one.value("questions"),
            slice="general questions",
        )


def _kind(name: str) -> str:
    return "f1" if name.endswith("macro-F1") else _KINDS.get(name, "accuracy")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
