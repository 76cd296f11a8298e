"""One look at the production of a released model: its new days against its training data.

    drift/<model>/<version>/state.json      what the next look needs
    drift/<model>/looks/<day>/report.json   what this look found, with its plot beside it

A look at a day that was looked at before changes nothing: each day is one bet of the year's budget.
Days with few requests wait until they have enough together.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.releases import current_release, open_release
from tuneline.artifacts.request_log import REPLACED, folder_name
from tuneline.config import GovernanceConfig
from tuneline.data.near_duplicates.compared_text import masked_prompt
from tuneline.errors import UserError
from tuneline.evidence import Verdict
from tuneline.governance.drift.prompts import MIN_WINDOW, Prompt, label_of
from tuneline.governance.drift.reference import BASELINE, Baseline, Reference
from tuneline.governance.drift.watch import DriftReport, WatchState, compare, draw
from tuneline.governance.production.curated_days import curated_days, open_current
from tuneline.governance.production.requests import compared_row
from tuneline.governance.production.settings import compared_with
from tuneline.governance.retraining.drift import Look
from tuneline.store import NotThere, Store

_LOOK = TypeAdapter(Look)
REPORT_SCHEMA = "tuneline/drift-look/1"
# A watch that compares nothing for a week may not be green: nobody would notice that it is blind.
MOST_SILENT_DAYS = 7


def look_at(store: Store, model: str, until: date, settings: GovernanceConfig) -> Look:
    """Compare the days since the last look with the training data, and store the report."""
    pointer = current_release(store, model)
    if pointer is None:
        why = f"no version of {model} is released, so there is nothing to compare with"
        return _put(store, model, until, {"verdict": Verdict.NOT_APPLICABLE, "summary": why})
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        return _compare(store, model, until, settings, pointer, scratch=Path(scratch))


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
    *_, unseen = _state(store, model, pointer)
    return max([told, *unseen])


def read_look(store: Store, model: str, day: date) -> Look:
    """Return what the look at a day found; UserError if there was none."""
    key = f"{_root(model)}/looks/{day}/report.json"
    try:
        document = json.loads(store.get_bytes(key))
    except NotThere:
        raise UserError(f"nothing compared {day} of {model}; run `tuneline logs drift`") from None
    return _look(document, store.uri_of(key))


def latest_looks(store: Store, model: str, most: int) -> list[Look]:
    """Return up to `most` looks, newest first."""
    keys = store.keys(f"{_root(model)}/looks")
    days = sorted({key.split("/")[-2] for key in keys if key.endswith("/report.json")})
    return [read_look(store, model, date.fromisoformat(day)) for day in reversed(days[-most:])]


def _compare(
    store: Store,
    model: str,
    until: date,
    settings: GovernanceConfig,
    pointer: ReleasePointer,
    *,
    scratch: Path,
) -> Look:
    release = open_release(store, pointer)
    stored = compared_with(release, BASELINE)
    prompts = Baseline.read(release.fetch(stored, scratch / stored.name)).prompts
    labels = frozenset(p.label for rows in prompts.values() for p in rows if p.label is not None)
    state, seen, unseen = _state(store, model, pointer)
    days = {day: _prompts(store, model, day, labels, scratch) for day in unseen if day <= until}
    nights, waiting = _pool({day: asked for day, asked in days.items() if asked})
    limits = {"alarms": settings.drift_p_value, "min_confidence": settings.min_confidence}
    reference = Reference.fit(prompts["train"], prompts["validation"], **limits)
    report = compare(reference, {str(first): asked for first, asked in nights.items()}, state)
    compared = {day: len(asked) for day, asked in days.items() if asked and day not in waiting}
    last = max({*seen, *compared}, default=date.fromisoformat(pointer.released_at[:10]))
    # Days on which nobody asked, as the ledger knows, need no comparison.
    silent = (until - last).days - sum(asked is None and day > last for day, asked in days.items())
    document = {
        **report.as_dict(),
        "version": release.version,
        "dataset": release.run().uri,
        "days": {str(day): count for day, count in compared.items()},
        "waiting": {str(day): len(days[day] or ()) for day in waiting},
        "days_not_compared": silent,
    }
    document |= _verdict(report, document, f"{model} {release.version}")
    if not compared and store.exists(f"{_root(model)}/looks/{until}/report.json"):
        # A second look at a day has no new days; what the first one saw stays.
        return read_look(store, model, until)
    if report.state.history:
        draw(report, scratch / "drift.svg")
        store.put_file(f"{_root(model)}/looks/{until}/drift.svg", scratch / "drift.svg")
    look = _put(store, model, until, document)
    if compared:
        kept = {"seen": sorted(map(str, {*seen, *compared})), "state": report.state.as_dict()}
        store.put_bytes(f"{_root(model)}/{release.version}/state.json", json.dumps(kept).encode())
    return look


def _pool(days: Mapping[date, list[Prompt]]) -> tuple[dict[date, list[Prompt]], list[date]]:
    """Join days to nights of `MIN_WINDOW` requests, by first day; return the days that wait too."""
    nights: dict[date, list[Prompt]] = {}
    waiting: list[date] = []
    for day in sorted(days):
        waiting.append(day)
        asked = [prompt for one in waiting for prompt in days[one]]
        if len(asked) >= MIN_WINDOW:
            nights[waiting[0]], waiting = asked, []
    return nights, waiting


def _put(store: Store, model: str, until: date, document: Mapping[str, Any]) -> Look:
    key = f"{_root(model)}/looks/{until}/report.json"
    whole = {"schema": REPORT_SCHEMA, "model": model, "until": str(until), **document}
    store.put_bytes(key, json.dumps(whole, indent=1, ensure_ascii=False).encode())
    return _look(whole, store.uri_of(key))


def _look(document: Mapping[str, Any], uri: str) -> Look:
    # A look without a comparison states no drift, one of an earlier version no verdict.
    drifted = bool(document.get("drifted"))
    assumed = {"drifted": drifted, "verdict": Verdict.FAIL if drifted else Verdict.PASS}
    named = {"since": None, "day": document["until"], "report": uri}
    return _LOOK.validate_python({**assumed, **named, **document})


def _verdict(report: DriftReport, document: Mapping[str, Any], release: str) -> dict[str, Any]:
    """Return verdict and summary of a look; a watch that sees nothing for days has failed."""
    days, waiting, silent = (document[k] for k in ("days", "waiting", "days_not_compared"))
    verdict = Verdict.PASS if days else Verdict.INCONCLUSIVE
    summary = f"{report.prompts} requests of {len(days)} days look like the training data of "
    summary = f"{summary}{release}" if days else f"{release} was not compared with new requests"
    if report.drifted:
        verdict = Verdict.FAIL
        names = (
            f"{m.name} {m.value:.3g} (p {m.p_value:.2g}, limit {m.limit:.2g})"
            for m in report.measures
            if m.drifted
        )
        summary = f"{', '.join(names)} differ from the training data of {release}"
    if waiting:
        wait = f"{sum(waiting.values())} requests of {len(waiting)} days wait"
        summary = f"{summary}; {wait} until they are {MIN_WINDOW}"
    if silent >= MOST_SILENT_DAYS:
        verdict = Verdict.FAIL
        summary = (
            f"{summary}; production was not compared for {silent} days: see that the gateway's "
            "production_log is on and that production_logs curates its days"
        )
    return {"verdict": verdict, "summary": summary}


def _prompts(
    store: Store, model: str, day: date, labels: frozenset[str], scratch: Path
) -> list[Prompt] | None:
    """Return every logged request of a day; None if the ledger knows that there was none."""
    curated = open_current(store, model, day)
    if curated is None:
        return []
    if curated.evidence.verdict == Verdict.NOT_APPLICABLE:
        return None
    columns = ("messages", "stand_ins", "answer", "confidence", "fallback_reason", "reason")
    rows = (row for batch in curated.requests(scratch, columns) for row in batch.to_pylist())
    return [
        Prompt(
            number,
            _asked(row),
            label_of(row["answer"], labels),
            row["confidence"],
            row["fallback_reason"] is not None,
            None if row["reason"] in REPLACED else row["reason"],
        )
        for number, row in enumerate(rows, 1)
    ]


def _asked(row: Mapping[str, Any]) -> str | None:
    """Return the last user turn, with placeholders also for what the gateway had missed."""
    turns = [text for role, text in masked_prompt(compared_row(row)) if role == "user"]
    return turns[-1] if turns else None


def _state(
    store: Store, model: str, pointer: ReleasePointer
) -> tuple[WatchState | None, set[date], list[date]]:
    """Return the state after the looks at a release's production, the days seen, and the others.

    The others are its curated days that no look has seen, whenever they were curated.
    """
    state: WatchState | None = None
    seen: set[date] = set()
    with suppress(NotThere):
        document = json.loads(store.get_bytes(f"{_root(model)}/{pointer.version}/state.json"))
        state = WatchState.model_validate(document["state"])
        seen = set(map(date.fromisoformat, document["seen"]))
    since = date.fromisoformat(pointer.released_at[:10])
    return state, seen, [d for d in curated_days(store, model) if d >= since and d not in seen]


def _root(model: str) -> str:
    return f"drift/{folder_name(model)}"
