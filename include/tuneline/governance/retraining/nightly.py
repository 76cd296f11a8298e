"""Decide whether a night trains: data or settings changed since the release, or it is forced.

Data and settings that came to a verdict and gave no release are not tried again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from tuneline.artifacts.governance import PointerName
from tuneline.artifacts.release_log import read_log, withdrawal
from tuneline.artifacts.releases import Release, open_release, read_release
from tuneline.data.sources.find_files import DatasetVersion, difference
from tuneline.errors import TunelineError, UserError
from tuneline.failures import ended_by_error
from tuneline.governance.release.approvals import is_needed, refusal
from tuneline.governance.release.canary import is_awaited
from tuneline.run import Run, now
from tuneline.store import Store
from tuneline.verdicts import checklist

_SHORT = 12


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
    under_way: Callable[[str], bool] = lambda _: False,
) -> Night:
    """Decide whether tonight's data and settings are worth a training.

    `under_way` returns True for a run that has not ended. One that ended before its verdict has
    tried nothing.
    """
    if force:
        return Night(True, "a training was asked for, whatever the data")
    release = read_release(store, name, pointer)
    known, before = _made_from(open_release(store, release)) if release else (None, None)
    tried, died = _tried(store, name, version, settings, under_way)
    kept = over_budget
    if release and is_awaited(store, name, release.version, datetime.now(UTC)):
        kept = f"the canary of {name} {release.version} is not decided yet"
    elif release and known == version and before in (None, settings):
        kept = (
            f"no new data since {name} {release.version}, released {release.released_at[:10]} "
            f"(dataset version {version.digest[:_SHORT]}), and the same settings"
        )
    elif tried:
        kept = tried
    if kept:
        return Night(False, f"not trained: {kept}")
    if release is None:
        why = f"{name} has no release yet"
    elif known is None:
        why = f"{name} {release.version} does not say which data it saw"
    elif known == version:
        why = f"the model's settings changed since {name} {release.version}"
    else:
        changed = difference(known.files, version.files)
        why = f"the data changed since {name} {release.version}: {changed}"
    return Night(True, f"{why}{died}")


def _made_from(release: Release) -> tuple[DatasetVersion | None, str | None]:
    """Return the data that a released model was made from, and its settings; None if unknown."""
    try:
        meta: dict[str, Any] = release.run().meta
    except TunelineError:
        # The run's folder may have been cleaned up; the release stays.
        return None, None
    files = meta.get("dataset_version")
    version = DatasetVersion(files=files) if isinstance(files, dict) else None
    return version, meta.get("model_settings")


def note_tried(
    store: Store, name: str, version: DatasetVersion, settings: str, run_id: str
) -> None:
    """Note that a run was started for a version of the data, with these settings of the model."""
    key = f"{_tried_prefix(name, version, settings)}/{run_id}.json"
    store.put_bytes(key, json.dumps({"run": run_id, "at": now()}, indent=1).encode())


def _tried(
    store: Store,
    name: str,
    version: DatasetVersion,
    settings: str,
    under_way: Callable[[str], bool],
) -> tuple[str, str]:
    """Return why the same is not tried again, and a part of a sentence on a run that died."""
    died = ""
    for key in store.keys(_tried_prefix(name, version, settings)):
        one = json.loads(store.get_bytes(key))
        run = one["run"]
        if under_way(run):
            return f"{run} is under way with the same data and settings", ""
        why, judged = why_kept(store, run)
        if judged:
            return (
                f"the same data and settings were tried on {one['at'][:10]} by {run}, which was "
                f"not released ({why}); start it with `force` to try again"
            ), ""
        died = f"; {run} came to no verdict on them ({why})"
    return "", died


def _tried_prefix(name: str, version: DatasetVersion, settings: str) -> str:
    both = f"{version.digest} {settings}"
    return f"retraining/{name}/tried/{hashlib.sha256(both.encode()).hexdigest()}"


def why_kept(store: Store, run_id: str) -> tuple[str, bool]:
    """Return why a run was not released, as part of a sentence, and True if it was judged.

    It was if a measurement, a canary or a person stopped it, not if a step raised or is missing.
    """
    try:
        run = Run.open(store.uri_of(f"runs/{run_id}"))
        if why := withdrawal(read_log(store, run.config.name, run_id).lines()):
            return f"its canary withdrew it: {why}", True
        stopping = [row for row in checklist(run) if row.stops_release]
        refused = refusal(run) if is_needed(run) else None
    except UserError as error:
        return str(error), True
    judged = [
        row
        for row in stopping
        if row.verdict != "not_run" and not ended_by_error(run.find_evidence(row.item))
    ]
    found = judged or stopping
    if shown := [row for row in found if row.verdict == "fail"] or found[:1]:
        reasons = [f"{r.item} ({r.verdict}): {r.because} ({r.summary})" for r in shown]
        return "; ".join(reasons), bool(judged)
    return refused or "it ended before the release", refused is not None


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
