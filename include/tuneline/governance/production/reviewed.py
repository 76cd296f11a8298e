"""Reviewed rows as training examples, and how far the review of a model is."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache, partial
from typing import Any

from tuneline.artifacts.releases import current_release, find_version
from tuneline.artifacts.request_log import days, folder_name
from tuneline.config import Model
from tuneline.data.tables.rows import Message
from tuneline.governance.production.curated_days import check_model, curated_days, open_days
from tuneline.governance.production.labels import Decision, open_rows, read_labels, review_rows
from tuneline.serving.following.chain import LARGER, settings_of
from tuneline.store import AlreadyThere, Store


@dataclass(frozen=True)
class ReviewedRow:
    """A training example that a person stands for."""

    request_id: str
    day: str
    labeller: str
    decision: Decision
    messages: list[Message]
    served_by: str  # model whose answer the person saw, the upstream's name if it is another's
    model_version: str | None
    license: str | None  # of that model, None if nothing states it


@dataclass(frozen=True)
class Reviewed:
    """The reviewed rows of a model by day and request id, and the hash of their ids and turns."""

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
        return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)


@dataclass(frozen=True)
class Sources:
    """What a model is trained on next: addresses, and the settings of a run that name them."""

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
    rows, digest = [], hashlib.sha256()
    answered = cache(partial(_answering, store, model))
    for one in sorted(labels.latest.values(), key=lambda label: (label.day, label.request_id)):
        if one.text is None:
            continue
        turns = [*one.messages, {"role": "assistant", "content": one.text}]
        served_by, stated = answered(one.served_by, one.model_version)
        facts = (one.request_id, one.day, one.by, one.decision)
        rows.append(ReviewedRow(*facts, turns, served_by, one.model_version, stated))
        line = json.dumps([one.request_id, turns, served_by, stated], separators=(",", ":"))
        digest.update(f"{line}\n".encode())
    rejected = len(labels.latest) - len(rows)
    return Reviewed(rows, digest.hexdigest(), rejected, labels.conflicts, labels.skipped)


def _answering(
    store: Store, model: str, served_by: str | None, version: str | None
) -> tuple[str, str | None]:
    """Return the model that answered a request and its licence: that of a release is its base's."""
    release = find_version(store, model, version) if version else None
    if release is not None:
        return model, release.manifest.base_model.get("license")
    pointer = current_release(store, model)
    latest = find_version(store, model, pointer.version) if pointer else None
    if latest is not None and served_by == f"{model}-{LARGER}":
        larger = settings_of(latest).fallback.larger
        return served_by, larger.license if larger else None
    return served_by or "unknown", None


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
