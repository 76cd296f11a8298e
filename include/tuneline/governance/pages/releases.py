"""The releases of the models as a page: what serves, how it came about, and how it has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import PointerMove, PointerName, ReleasePointer
from tuneline.artifacts.releases import (
    LINEAGE_EVIDENCE,
    POINTERS,
    Release,
    find_version,
    model_names,
    model_prefix,
    read_release,
)
from tuneline.catalogue import ITEMS
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, load_evidence
from tuneline.governance.pages.checklist import AT_ONCE, evidence_of, tab_of, templates
from tuneline.governance.production.drift_look import latest_looks
from tuneline.governance.release.canary import told_of
from tuneline.governance.retraining.drift import Look
from tuneline.serving.following.chain import settings_of
from tuneline.serving.gateway.ledger.reports import Group, costs
from tuneline.store import Store

# Versions side by side, the newest; looks at production; days of cost.
_VERSIONS, _LOOKS, _DAYS = 12, 28, 30
# Numbers whose course is drawn: heading, item, measurement.
_COURSES = (
    ("task metric on the hold-out", "holdout_performance", "tuned_metric"),
    ("gain over the base", "holdout_performance", "gain"),
    ("general questions answered right", "base_regression", "tuned_share"),
    ("validation loss, nats", "loss_monitoring", "best_validation_loss"),
    ("peak tokens per second", "latency_benchmark", "peak_tokens_per_s"),
    ("bytes that ship", "production_quantization", "chosen_bytes"),
)


@dataclass(frozen=True)
class Course:
    """A number over the versions, oldest first; `points` are positions of an SVG polyline."""

    heading: str
    values: list[float | None]
    points: str

    @property
    def last(self) -> float | None:
        """The value of the newest version."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class Version:
    """A released version: its release, and the evidence that courses are drawn of."""

    release: Release
    found: Mapping[str, Evidence] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)  # verdicts that the manifest lacks

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each item."""
        stated = self.release.manifest.evidence
        return {**{item: entry.verdict for item, entry in stated.items()}, **self.apart}

    @property
    def steps(self) -> list[tuple[str, str]]:
        """The stations of its lineage, from data to release: heading and text of each."""
        manifest = self.release.manifest
        weights = [ref.sha256[:12] for ref in self.release.model_files().values()][:1]
        return [
            ("data", f"{str(manifest.dataset.get('version', ''))[:12]}"),
            ("run", manifest.version),
            ("code", str(manifest.code.get("commit") or "no commit")[:12]),
            ("bytes", weights[0] if weights else "an adapter"),
            ("release", self.release.sha256[:12]),
        ]


@dataclass(frozen=True)
class Shelf:
    """The releases of one model, newest first.

    Attributes:
        pointers: by `production` and `staging`, as far as there is one.
        wrong: what of it can't be read, as a sentence.
    """

    name: str
    pointers: Mapping[PointerName, ReleasePointer] = field(default_factory=dict)
    versions: Sequence[Version] = ()
    canary: str | None = None
    looks: Sequence[Look] = ()
    wrong: str = ""

    @property
    def moves(self) -> list[tuple[str, PointerMove]]:
        """The moves of all pointers, newest first."""
        return _moves(self.pointers)

    @property
    def courses(self) -> list[Course]:
        """The course of each key number that was measured more than once."""
        found = (_course(self.versions, *one) for one in _COURSES)
        return [one for one in found if sum(v is not None for v in one.values) > 1]


def shelves(store: Store, wanted: Callable[[str], bool]) -> list[Shelf]:
    """Read the releases of the models that are wanted by name."""
    names = {name for which in POINTERS for name in model_names(store, which)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [_shelf(store, name, pool) for name in sorted(names) if wanted(name)]


def _shelf(store: Store, name: str, pool: ThreadPoolExecutor) -> Shelf:
    try:
        found = {which: read_release(store, name, which) for which in POINTERS}
        pointers = {which: one for which, one in found.items() if one is not None}
        ids = list(dict.fromkeys(move.version for _, move in _moves(pointers)))[:_VERSIONS]
        versions = filter(None, pool.map(partial(_version, store, name), ids))
        serving = next(iter(pointers.values()))
        newest = find_version(store, name, serving.version)
        asked = settings_of(newest).canary.share if newest else 0
        canary = told_of(store, name, serving.version) if asked else None
        return Shelf(name, pointers, list(versions), canary, latest_looks(store, name, _LOOKS))
    except TunelineError as error:
        return Shelf(name, wrong=str(error))


def _moves(pointers: Mapping[PointerName, ReleasePointer]) -> list[tuple[str, PointerMove]]:
    """Return the moves of all pointers, newest first."""
    found = [(which, move) for which, one in pointers.items() for move in one.history]
    return sorted(found, key=lambda pair: pair[1].at, reverse=True)


def _version(store: Store, name: str, version: str) -> Version | None:
    release = find_version(store, name, version)
    if release is None:
        return None
    items = dict.fromkeys(item for _, item, _ in _COURSES)
    found = {item: one for item in items if (one := evidence_of(release, item))}
    # The manifest states no verdict of lineage, which is about the manifest.
    key = f"{model_prefix(name, version)}/{LINEAGE_EVIDENCE}"
    last = load_evidence(store.get_bytes(key), key) if store.exists(key) else None
    return Version(release, found, {"lineage": last.verdict} if last else {})


def _course(versions: Sequence[Version], heading: str, item: str, name: str) -> Course:
    values = [_number(version, item, name) for version in reversed(versions)]
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    width = max(len(values) - 1, 1)
    points = " ".join(
        f"{5 + 190 * at / width:.1f},{40 - 32 * ((value - low) / (high - low or 1)):.1f}"
        for at, value in enumerate(values)
        if value is not None
    )
    return Course(heading, values, points)


def _number(version: Version, item: str, name: str) -> float | None:
    measured = version.found[item].measurements if item in version.found else []
    value = next((m.value for m in measured if m.name == name), None)
    return float(value) if isinstance(value, int | float) else None


def usage(ledger: str) -> dict[str, list[Group]]:
    """Return what the gateway's ledger says of the last days, by day and by key.

    Raises:
        UserError: if the ledger can't be read.
    """
    place = ledger if "://" in ledger else Path(ledger)
    since = datetime.now(UTC) - timedelta(days=_DAYS)
    return {by: costs(place, by, since) for by in ("day", "key")}


def render_releases(found: Sequence[Shelf], **around: Any) -> str:
    """Return the page; `around` are values of the template besides the shelves."""
    values = {"shelves": found, "items": ITEMS, "tab_of": tab_of, **around}
    return templates().get_template("releases.html").render(values)
