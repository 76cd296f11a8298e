"""Reviewed rows as training examples, and how far the review of a model is."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from tuneline.artifacts.request_log import days, folder_name
from tuneline.config import Model
from tuneline.data.tables.rows import Message
from tuneline.governance.production.curated_days import check_model, curated_days, open_days
from tuneline.governance.production.labels import (
    Decision,
    Label,
    open_rows,
    read_labels,
    review_rows,
)
from tuneline.store import AlreadyThere, Store


@dataclass(frozen=True)
class ReviewedRow:
    """A training example that a person stands for."""

    request_id: str
    day: str
    labeller: str
    decision: Decision
    messages: list[Message]


@dataclass(frozen=True)
class Reviewed:
    """The reviewed rows of a model."""

    rows: list[ReviewedRow]
    version: str  # hash of their ids and turns
    rejected: int = 0
    conflicts: int = 0
    skipped: list[str] = field(default_factory=list)

    def between(self, first: date, last: date) -> list[ReviewedRow]:
        """Return the rows of the days from `first` to `last`."""
        return [row for row in self.rows if str(first) <= row.day <= str(last)]

    def jsonl(self) -> str:
        """Return the rows in the form `messages`, one JSON object a line."""
        names = ("messages", "request_id", "day", "labeller", "decision")
        rows = ({name: getattr(row, name) for name in names} for row in self.rows)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@dataclass(frozen=True)
class Sources:
    """What a model is trained on next."""

    addresses: list[str]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class ReviewStatus:
    """How far a model's requests have come."""

    days_logged: list[str]
    days_curated: list[str]
    rows_curated: int
    in_review: int
    labelled: int
    reviewed: int
    conflicts: int
    skipped: list[str]
    version: str


def reviewed_rows(store: Store, model: str) -> Reviewed:
    """Return the rows of a model that people accepted or corrected."""
    check_model(model)
    labels = read_labels(store, model)
    used = [label for label in labels.latest.values() if label.decision != Decision.REJECT]
    rows = sorted(map(_row, used), key=lambda row: (row.day, row.request_id))
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row.request_id, row.messages], separators=(",", ":"))
        digest.update(f"{line}\n".encode())
    return Reviewed(
        rows, digest.hexdigest(), len(labels.latest) - len(used), labels.conflicts, labels.skipped
    )


def _row(label: Label) -> ReviewedRow:
    answer = label.answer if label.answer_corrected is None else label.answer_corrected
    turns = [*label.messages, {"role": "assistant", "content": answer}]
    return ReviewedRow(label.request_id, label.day, label.by, label.decision, turns)


def review_status(store: Store, model: str) -> ReviewStatus:
    """Return how far a model's requests have come."""
    reviewed = reviewed_rows(store, model)
    curated = curated_days(store, model)
    waiting = open_rows(review_rows(store, model), read_labels(store, model))
    return ReviewStatus(
        days_logged=[day.isoformat() for day in days(store, model)],
        days_curated=[day.isoformat() for day in curated],
        rows_curated=sum(day.evidence.rows_kept for day in open_days(store, model, curated)),
        in_review=len(waiting),
        labelled=len(reviewed.rows) + reviewed.rejected,
        reviewed=len(reviewed.rows),
        conflicts=reviewed.conflicts,
        skipped=reviewed.skipped,
        version=reviewed.version,
    )


def write_reviewed(store: Store, model: Model, reviewed: Reviewed) -> Sources:
    """Write the reviewed rows as a dataset, `reviewed/<model>/<version>.jsonl`."""
    config = model.config()
    addresses = list(config.data.sources)
    if not reviewed.rows:
        return Sources(addresses, {})
    key = f"reviewed/{folder_name(model.name)}/{reviewed.version}.jsonl"
    raw = reviewed.jsonl().encode()
    with suppress(AlreadyThere):
        store.put_bytes(key, raw, once=True)
    addresses.append(store.uri_of(key))
    return Sources(addresses, {"data": {"source": addresses}})
