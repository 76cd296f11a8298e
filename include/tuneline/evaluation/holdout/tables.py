"""The tables beside the verdict: wrong rows, JSON fields, and confused labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.data.conversations.answers import answer_object
from tuneline.data.tables.rows import Row
from tuneline.evidence import Measurement, measure
from tuneline.harness.answers import canonical
from tuneline.harness.judged import Judged

# Rows that a person reads through.
SHOWN = 50


def wrong_rows(rows: Sequence[Row], answers: Sequence[str], judged: Judged) -> list[dict[str, Any]]:
    """Return the rows with the lowest scores, worst first; none that is wholly right."""
    ranked = sorted(range(len(rows)), key=lambda at: judged.scores[at])
    return [
        {
            "row_id": rows[at].row_id,
            "expected": rows[at].answer,
            "got": answers[at],
            "score": round(judged.scores[at], 4),
        }
        for at in ranked[:SHOWN]
        if judged.scores[at] < 1.0
    ]


def by_field(expected: Sequence[str], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return how often each field of a JSON answer has the expected value, by model.

    Args:
        expected: the expected answers.
        answers: the answers of each model, by its name.

    Returns:
        For each field: its name, the rows that expect it, and the share right of each model. Empty
        unless every expected answer is a JSON object.
    """
    wanted = [answer_object(text) for text in expected]
    objects = [value for value in wanted if value is not None]
    if len(objects) < len(wanted):
        return []
    got = {who: [answer_object(text) or {} for text in texts] for who, texts in answers.items()}
    table = []
    for name in dict.fromkeys(key for value in objects for key in value):
        at = [number for number, value in enumerate(objects) if name in value]
        entry: dict[str, Any] = {"field": name, "rows": len(at)}
        for who, values in got.items():
            right = sum(
                name in values[n] and canonical(values[n][name]) == canonical(objects[n][name])
                for n in at
            )
            entry[who] = round(right / len(at), 4)
        table.append(entry)
    return table


def confusion(judged: Judged) -> dict[str, Any]:
    """Return how often each expected label was answered with each other one.

    Returns:
        `labels` are the expected ones, in order. `counts[i][j]` are rows of label i that were
        answered with label j; the last two columns are answers with another label, and without any.
    """
    labels = sorted({label for label in judged.wanted if label is not None})
    counts = Counter(zip(judged.wanted, judged.named, strict=True))
    table = []
    for wanted in labels:
        row = [counts[wanted, named] for named in labels]
        none = counts[wanted, None]
        total = sum(n for (label, _), n in counts.items() if label == wanted)
        table.append([*row, total - sum(row) - none, none])
    return {"labels": labels, "columns": [*labels, "(another)", "(none)"], "counts": table}


def label_measurements(name: str, judged: Judged) -> list[Measurement]:
    """State the macro-F1 of a model whose answers are labels."""
    if not judged.wanted:
        return []
    found = judged.macro_f1
    return [
        measure(f"{name}_macro_f1", round(found.value, 4), "share", noise=round(found.error, 4)),
        measure(f"{name}_macro_f1_lower", round(found.lower, 4), "share"),
        measure(f"{name}_macro_f1_upper", round(found.upper, 4), "share"),
    ]
