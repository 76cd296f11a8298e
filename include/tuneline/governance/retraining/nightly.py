"""Whether a night trains: only if the data changed since the released model, or on demand.

Data that gave no release are tried again only after a change of the model's settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline.artifacts.governance import PointerName
from tuneline.artifacts.release_log import read_log, withdrawal
from tuneline.artifacts.releases import Release, open_release, read_release
from tuneline.data.sources.find_files import DatasetVersion, difference
from tuneline.errors import TunelineError
from tuneline.governance.release.canary import is_awaited
from tuneline.run import Run, now
from tuneline.store import Store
from tuneline.verdicts import checklist

_SHORT = 12


class Tried(BaseModel):
    """A run that was started for a version of the data."""

    model_config = ConfigDict(frozen=True)

    run: str
    at: str


@dataclass(frozen=True)
class Night:
    """The decision of one night."""

    train: bool
    why: str


def decide(
    store: Store,
    name: str,
    version: DatasetVersion,
    settings: str,
    *,
    pointer: PointerName = "production",
    force: bool = False,
    over_budget: str | None = None,
) -> Night:
    """Decide whether tonight's data are worth a training."""
    release = read_release(store, name, pointer)
    known = version_of_release(open_release(store, release)) if release else None
    tried = _tried(store, name, version, settings)
    if force:
        return Night(True, "a training was asked for, whatever the data")
    kept = over_budget
    if release and is_awaited(store, name, release.version, datetime.now(UTC)):
        kept = f"the canary of {name} {release.version} is not decided yet"
    elif release and known == version:
        kept = (
            f"no new data since {name} {release.version}, released {release.released_at[:10]} "
            f"(dataset version {version.digest[:_SHORT]})"
        )
    elif tried:
        kept = (
            f"the same data and settings were tried on {tried.at[:10]} by {tried.run}, which was "
            f"not released: {why_kept(store, tried.run)}; start it with `force` to try again"
        )
    if kept:
        return Night(False, f"not trained: {kept}")
    if release is None:
        why = f"{name} has no release yet"
    elif known is None:
        why = f"{name} {release.version} does not say which data it saw"
    else:
        changed = difference(known.files, version.files)
        why = f"the data changed since {name} {release.version}: {changed}"
    return Night(True, why)


def version_of_release(release: Release) -> DatasetVersion | None:
    """Return the version of the data that a released model was made from; None if unknown."""
    try:
        meta: dict[str, Any] = release.run().meta
    except TunelineError:
        # The run's folder may have been cleaned up; the release stays.
        return None
    files = meta.get("dataset_version")
    return DatasetVersion(files=files) if isinstance(files, dict) else None


def note_tried(
    store: Store, name: str, version: DatasetVersion, settings: str, run_id: str
) -> None:
    """Note that a run was started for a version of the data, with these settings of the model."""
    key = _tried_key(name, version, settings)
    store.put_bytes(key, Tried(run=run_id, at=now()).model_dump_json(indent=1).encode())


def _tried(store: Store, name: str, version: DatasetVersion, settings: str) -> Tried | None:
    key = _tried_key(name, version, settings)
    return Tried.model_validate_json(store.get_bytes(key)) if store.exists(key) else None


def _tried_key(name: str, version: DatasetVersion, settings: str) -> str:
    both = f"{version.digest} {settings}"
    return f"retraining/{name}/tried/{hashlib.sha256(both.encode()).hexdigest()}.json"


def why_kept(store: Store, run_id: str) -> str:
    """Return why a run was not released, as part of a sentence."""
    try:
        run = Run.open(store.uri_of(f"runs/{run_id}"))
        if why := withdrawal(read_log(store, run.config.name, run_id).lines()):
            return f"its canary withdrew it: {why}"
        rows = checklist(run)
    except TunelineError as error:
        return str(error)
    stopping = [row for row in rows if row.stops_release]
    failed = [row for row in stopping if row.verdict == "fail"] or stopping[:1]
    if failed:
        return "; ".join(f"{r.item} ({r.verdict}): {r.because} ({r.summary})" for r in failed)
    return "it ended before the release, or no one approved it"


def spent(store: Store, name: str, month: date) -> float:
    """Return the cost of a model's nightly and drift-started trainings of a calendar month."""
    prefix = f"{month:%Y-%m}"
    runs = set()
    for key in store.keys(f"retraining/{name}"):
        document = json.loads(store.get_bytes(key))
        # What was tried has the time of its start, a drift the day that was seen.
        if str(document.get("at") or document.get("day", "")).startswith(prefix):
            runs.add(str(document["run"]))
    return sum(_cost(store, run) for run in sorted(runs))


def over_budget(store: Store, name: str, today: date, budget: float | None) -> str | None:
    """Return the sentence that says that the month's budget is spent; None if it is not."""
    if budget is None:
        return None
    cost = spent(store, name, today)
    if cost < budget:
        return None
    return (
        f"the budget of {today:%B} is spent: its trainings cost {cost:.4g}, "
        f"budget.training_per_month is {budget:g}"
    )


def _cost(store: Store, run_id: str) -> float:
    try:
        record = Run.open(store.uri_of(f"runs/{run_id}")).entry("train")
    except TunelineError:
        return 0.0
    found = [m.value for m in record.measurements if m.name == "cost"]
    return float(found[0]) if found and isinstance(found[0], int | float) else 0.0
