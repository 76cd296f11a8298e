"""One look at the production of a released model: its new days against its training data.

    drift/<model>/<version>/state.json      what the next look needs
    drift/<model>/looks/<day>/report.json   what this look found, with its plot beside it

A look at a day that was looked at before changes nothing: each day is one bet of the year's budget.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.releases import current_release, open_release
from tuneline.artifacts.request_log import folder_name, read_day
from tuneline.config import GovernanceConfig
from tuneline.errors import UserError
from tuneline.governance.drift.prompts import (
    MIN_WINDOW,
    Prompt,
    label_of,
    last_user_turn,
    read_reference,
)
from tuneline.governance.drift.reference import Reference
from tuneline.governance.drift.watch import DriftReport, WatchState, compare
from tuneline.governance.production.curated_days import curated_days, open_current
from tuneline.governance.retraining.drift import Look
from tuneline.store import NotThere, Store

REPORT_SCHEMA = "tuneline/drift-look/1"


def look_at(store: Store, model: str, until: date, settings: GovernanceConfig) -> Look:
    """Compare the days since the last look with the training data, and store the report."""
    pointer = current_release(store, model)
    if pointer is None:
        why = f"no version of {model} is released, so there is nothing to compare with"
        return _keep(store, model, until, {"drifted": False, "since": None, "summary": why})
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        return _compare(
            store, model, until, settings=settings, pointer=pointer, scratch=Path(scratch)
        )


def last_day(store: Store, model: str, curated: Iterable[date]) -> date:
    """Return the last day of a look that curated days have started.

    Airflow keeps one entry for events that come before it has made the run, and hands the run the
    first of them alone. So a day that was curated meanwhile and that no look has seen counts as
    well; it would otherwise wait for the next day.
    """
    told = max(curated)
    pointer = current_release(store, model)
    if pointer is None:
        return told
    _, seen = _state(store, model, pointer.version)
    return max([told, *_unseen(store, model, pointer, seen)])


def read_look(store: Store, model: str, day: date) -> Look:
    """Return what the look at a day found; UserError if there was none."""
    prefix = f"{_root(model)}/looks/{day}"
    try:
        document = json.loads(store.get_bytes(f"{prefix}/report.json"))
    except NotThere:
        raise UserError(f"nothing compared {day} of {model}; run `tuneline logs drift`") from None
    return _look(document, store.uri_of(f"{prefix}/report.json"))


def _compare(
    store: Store,
    model: str,
    until: date,
    *,
    settings: GovernanceConfig,
    pointer: ReleasePointer,
    scratch: Path,
) -> Look:
    release = open_release(store, pointer)
    run = release.run()
    dataset = release.artifact(DATASET.step, DATASET.name)
    if dataset is None:
        raise UserError(f"{run.uri} has no dataset to compare with")
    prompts = read_reference(release.fetch(dataset, scratch / DATASET.name))
    labels = frozenset(p.label for rows in prompts.values() for p in rows if p.label is not None)
    state, seen = _state(store, model, release.version)
    fresh = [day for day in _unseen(store, model, pointer, seen) if day <= until]
    days = {str(day): _prompts(store, model, day, labels, scratch) for day in fresh}
    told = {day: found for day, found in days.items() if len(found) >= MIN_WINDOW}
    reference = Reference.fit(
        prompts["train"],
        prompts["validation"],
        alarms=settings.drift_p_value,
        min_confidence=settings.min_confidence,
    )
    report = compare(reference, told, state)
    document = {
        **report.as_dict(),
        "version": release.version,
        "dataset": run.uri,
        "days": {day: len(found) for day, found in days.items()},
        "summary": _summary(report, days, told, model, release.version),
    }
    look = _keep(store, model, until, document, report=report, scratch=scratch)
    if fresh:
        kept = {"seen": sorted(map(str, {*seen, *fresh})), "state": report.state.as_dict()}
        store.put_bytes(f"{_root(model)}/{release.version}/state.json", json.dumps(kept).encode())
    return look


def _keep(
    store: Store,
    model: str,
    until: date,
    document: Mapping[str, Any],
    *,
    report: DriftReport | None = None,
    scratch: Path | None = None,
) -> Look:
    prefix = f"{_root(model)}/looks/{until}"
    # A second look at a day has no new days; what the first one saw stays.
    if report is not None and not document["days"] and store.exists(f"{prefix}/report.json"):
        return read_look(store, model, until)
    if report is not None and scratch is not None and report.state.history:
        from tuneline.governance.drift.watch import draw

        draw(report, scratch / "drift.png")
        store.put_file(f"{prefix}/drift.png", scratch / "drift.png")
    whole = {"schema": REPORT_SCHEMA, "model": model, "until": str(until), **document}
    raw = json.dumps(whole, indent=1, ensure_ascii=False).encode()
    store.put_bytes(f"{prefix}/report.json", raw)
    return _look(whole, store.uri_of(f"{prefix}/report.json"))


def _look(document: Mapping[str, Any], uri: str) -> Look:
    since = document["since"]
    return Look(
        bool(document["drifted"]),
        date.fromisoformat(document["until"]),
        date.fromisoformat(since) if since else None,
        str(document["summary"]),
        uri,
        document.get("version"),
    )


def _summary(
    report: DriftReport,
    days: Mapping[str, list[Prompt]],
    told: Mapping[str, list[Prompt]],
    model: str,
    version: str,
) -> str:
    if report.drifted:
        names = ", ".join(
            f"{m.name} {m.value:.3g} (p {m.p_value:.2g}, limit {m.limit:.2g})"
            for m in report.measures
            if m.drifted
        )
        return f"{names} differ from the training data of {model} {version}"
    if not days:
        return f"no curated day of {model} {version} is new"
    if not told:
        return f"not compared: none of {len(days)} new days has {MIN_WINDOW} requests"
    few = len(days) - len(told)
    note = f"; {few} of these days have fewer than {MIN_WINDOW} requests" if few else ""
    return (
        f"{report.prompts} requests of {len(told)} days look like the training data of "
        f"{model} {version}{note}"
    )


def _prompts(
    store: Store, model: str, day: date, labels: frozenset[str], scratch: Path
) -> list[Prompt]:
    """Return every logged request of a day, one without a usable text as such."""
    curated = open_current(store, model, day)
    if curated is None:
        return []
    texts = {
        entry["request_id"]: last_user_turn(entry["messages"])
        for batch in curated.requests(scratch, ("request_id", "messages"))
        for entry in batch.filter(batch["messages"].is_valid()).to_pylist()
    }
    columns = ["request_id", "answer", "confidence", "fallback_reason"]
    return [
        Prompt(
            number,
            texts.get(row["request_id"]),
            label_of(row["answer"], labels),
            row["confidence"],
            row["fallback_reason"] is not None,
        )
        for number, row in enumerate(read_day(store, model, day).select(columns).to_pylist(), 1)
    ]


def _state(store: Store, model: str, version: str) -> tuple[WatchState | None, set[date]]:
    """Return the state after the looks at a version's production, and the days that they saw."""
    with suppress(NotThere):
        document = json.loads(store.get_bytes(f"{_root(model)}/{version}/state.json"))
        seen = set(map(date.fromisoformat, document["seen"]))
        return WatchState.from_dict(document["state"]), seen
    return None, set()


def _unseen(store: Store, model: str, pointer: ReleasePointer, seen: set[date]) -> list[date]:
    """Return the curated days of a release that no look has seen, whenever they were curated."""
    since = date.fromisoformat(pointer.released_at[:10])
    return [day for day in curated_days(store, model) if day >= since and day not in seen]


def _root(model: str) -> str:
    return f"drift/{folder_name(model)}"
