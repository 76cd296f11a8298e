"""The rows that were drawn for review: reading them, and writing the open ones for a person."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError
from tuneline.governance.production.curated_day import REVIEW, curated_days, open_day, parse_day
from tuneline.governance.production.settings import data_settings
from tuneline.store import Store

COLUMNS = ("request_id", "prompt", "answer", "stratum", "decision", "answer_corrected")
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = tuple("=+-@\t\r")


@dataclass(frozen=True)
class ReviewRow:
    """A row that was drawn for review.

    Attributes:
        request_id: id of the request.
        day: its day, YYYY-MM-DD.
        messages: its scrubbed prompt.
        answer: its scrubbed answer.
        stratum: the stratum it was drawn from.
        inclusion_probability: the probability with which it was drawn.
        surrogates: texts in it that stand for personal data.
        data: settings of the data phase that it was scrubbed by.
    """

    request_id: str
    day: str
    messages: list[Message]
    answer: str
    stratum: str
    inclusion_probability: float
    surrogates: list[str]
    data: DataConfig

    @property
    def prompt(self) -> str:
        """The prompt as a person reads it: each turn with its role, unless there is one alone."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


_STORED = tuple(entry.name for entry in fields(ReviewRow) if entry.name != "data")


def parse_days(text: str) -> tuple[date, date]:
    """Return the first and the last day of `A..B`, or of a day alone.

    Raises:
        UserError: if it is neither, or ends before it begins.
    """
    first, separator, last = text.partition("..")
    days = parse_day(first), parse_day(last if separator else first)
    if days[0] > days[1]:
        raise UserError(f"--days {text} ends before it begins; write the earlier day first")
    return days


def review_rows(
    store: Store, model: str, days: Collection[date] | None = None
) -> Iterator[ReviewRow]:
    """Yield the rows that were drawn for review, day by day.

    Args:
        store: the store.
        model: the model.
        days: the days; None for all.
    """
    for day in curated_days(store, model):
        if days is not None and day not in days:
            continue
        curated = open_day(store, model, day)
        if curated is None or not curated.rows(REVIEW):
            continue
        data = data_settings(curated.evidence.settings)
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            path = Path(scratch) / REVIEW
            curated.fetch(REVIEW, path)
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    entry = json.loads(line)
                    yield ReviewRow(**{name: entry[name] for name in _STORED}, data=data)


def as_jsonl(rows: Iterable[ReviewRow]) -> str:
    """Return rows as JSON lines with empty columns for the decision."""
    return "".join(json.dumps(_cells(row), ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: Iterable[ReviewRow]) -> str:
    """Return rows as CSV with empty columns for the decision; no cell is a formula."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for row in rows:
        cells = _cells(row)
        for name in ("prompt", "answer"):
            if cells[name].startswith(_FORMULA):
                cells[name] = f"'{cells[name]}"
        writer.writerow(cells)
    return out.getvalue()


def _cells(row: ReviewRow) -> dict[str, Any]:
    filled = {name: getattr(row, name) for name in COLUMNS[:4]}
    return {**filled, "decision": "", "answer_corrected": ""}
