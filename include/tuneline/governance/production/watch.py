"""One look at the production of a released model: its new days against its training data.

    drift/<model>/<version>/state.json      what the next look needs
    drift/<model>/looks/<day>/report.json   what this look found, with its plot beside it

A look at a day that was looked at before changes nothing: each day is one bet of the year's budget.
The texts are those of the curated days, scrubbed like the training data. A request that was merged
into a near-duplicate counts with the duplicate's text, so that frequent questions stay frequent.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.releases import open_release, read_release
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
from tuneline.governance.production.curated_day import (
    CURATED,
    REJECTED,
    CuratedDay,
    curated_days,
    open_day,
)
from tuneline.governance.retraining.drift import Look
from tuneline.store import NotThere, Store

REPORT_SCHEMA = "tuneline/drift-look/1"
# Days in which the row is found that a later duplicate was merged into.
_LOOKBACK = 60


def look_at(store: Store, model: str, until: date, settings: GovernanceConfig) -> Look:
    """Compare the days since the last look with the training data, and store the report.

    Args:
        store: the store.
        model: the model.
        until: the last day.
        settings: the false alarms of a year, and the limit of confidence.

    Raises:
        UserError: if the released model's dataset can't be read.
    """
    pointer = read_release(store, model)
    if pointer is None:
        why = f"no version of {model} is released, so there is nothing to compare with"
        return _keep(store, model, until, {"drifted": False, "since": None, "summary": why})
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        return _compare(
            store, model, until, settings=settings, pointer=pointer, scratch=Path(scratch)
        )


def last_day(store: Store, model: str, curated: Iterable[date]) -> date:
    """Return the last day of a look that curated days have started.

    Airflow keeps one entry for events that come before it has made the run, and hands the run
    the first of them alone. So a day that was curated meanwhile and that no look has seen counts
    as well; it would otherwise wait for the next day.

    Args:
        store: the store.
        model: the model that clients ask for.
        curated: the days that the run was told of, at least one.
    """
    told = max(curated)
    pointer = read_release(store, model)
    if pointer is None:
        return told
    _, seen = _state(store, model, pointer.version)
    return max([told, *_unseen(store, model, pointer, seen)])


def read_look(store: Store, model: str, day: date) -> Look:
    """Return what the look at a day found.

    Raises:
        UserError: if there was none.
    """
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
    texts = _Texts(store, model, scratch)
    days = {str(day): texts.requests(day, labels) for day in fresh}
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
        store.put_bytes(_state_key(model, release.version), json.dumps(kept).encode())
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


class _Texts:
    """The texts of requests, from the curated days that they stand in."""

    def __init__(self, store: Store, model: str, scratch: Path) -> None:
        self._store, self._model, self._scratch = store, model, scratch
        self._known: dict[str, dict[str, str]] = {}

    def requests(self, day: date, labels: frozenset[str]) -> list[Prompt]:
        """Return every logged request of a day, one without a usable text as such."""
        curated = open_day(self._store, self._model, day)
        if curated is None:
            return []
        texts = dict(self._of_day(str(day)))
        merged = {
            entry["request_id"]: (entry["of"], entry["of_day"] or str(day))
            for entry in self._table(curated, REJECTED, ["request_id", "of", "of_day"])
            if entry["of"]
        }
        for name, kept in merged.items():
            # Of two like requests of today, the one that stayed may be like one of an earlier day.
            request, its_day = merged.get(kept[0], kept)
            text = self._of_day(its_day).get(request)
            if text is not None:
                texts[name] = text
        return [
            Prompt(
                number,
                texts.get(row["request_id"]),
                label_of(row["answer"], labels),
                row["confidence"],
                row["fallback_reason"] is not None,
            )
            for number, row in enumerate(self._logged(day), 1)
        ]

    def _logged(self, day: date) -> Iterable[dict[str, Any]]:
        columns = ["request_id", "answer", "confidence", "fallback_reason"]
        return read_day(self._store, self._model, day).select(columns).to_pylist()

    def _of_day(self, day: str) -> dict[str, str]:
        if day not in self._known:
            curated = open_day(self._store, self._model, date.fromisoformat(day))
            rows = self._table(curated, CURATED, ["request_id", "messages"]) if curated else ()
            found = ((row["request_id"], last_user_turn(row["messages"])) for row in rows)
            self._known[day] = {name: text for name, text in found if text is not None}
            if len(self._known) > _LOOKBACK:
                self._known.pop(next(iter(self._known)))
        return self._known[day]

    def _table(self, day: CuratedDay, name: str, columns: list[str]) -> list[dict[str, Any]]:
        path = self._scratch / f"{day.evidence.day}-{name}"
        if not day.fetch(name, path):
            return []
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
        path.unlink()
        return rows


def _state(store: Store, model: str, version: str) -> tuple[WatchState | None, set[date]]:
    """Return the state after the looks at a version's production, and the days that they saw."""
    with suppress(NotThere):
        document = json.loads(store.get_bytes(_state_key(model, version)))
        seen = set(map(date.fromisoformat, document["seen"]))
        return WatchState.from_dict(document["state"]), seen
    return None, set()


def _unseen(store: Store, model: str, pointer: ReleasePointer, seen: set[date]) -> list[date]:
    """Return the curated days of a release that no look has seen, whenever they were curated."""
    since = date.fromisoformat(pointer.released_at[:10])
    return [day for day in curated_days(store, model) if day >= since and day not in seen]


def _state_key(model: str, version: str) -> str:
    return f"{_root(model)}/{version}/state.json"


def _root(model: str) -> str:
    return f"drift/{folder_name(model)}"
