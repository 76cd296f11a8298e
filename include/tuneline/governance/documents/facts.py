"""What the documents of a release may say: its manifest, and the evidence that it ships.

Nothing else is read, so that a document can claim no more than the release holds.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from tuneline.artifacts.governance import AUDITED, ENGINE_PACKAGES, ManifestFile
from tuneline.artifacts.releases import ADAPTER_FOLDER, CONFIG_FILE, Release
from tuneline.catalogue import ITEMS, Item
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, Measurement, Verdict
from tuneline.failures import ended_by_error
from tuneline.serving.following.release import weights_sha256


@dataclass(frozen=True)
class Metric:
    """One measured number."""

    item: str
    name: str
    kind: str  # its id on https://hf.co/metrics; `accuracy` for a share of right answers
    value: float
    lower: float | None = None  # of its 95 % interval
    upper: float | None = None
    base: float | None = None  # what the base model reached; None if it was not asked
    rows: int | None = None  # or questions
    slice: str = ""  # what it was measured on


# Ids of metrics by their names; a name that is none of these is a share of right answers.
_KINDS = {"exact match": "exact_match", "chrF": "chrf", "ROUGE-L": "rouge"}


def metrics(facts: Facts) -> list[Metric]:
    """Return what was measured on the shipped bytes; nothing for an item that was not run."""
    return [*_holdout(facts), *_general(facts)]


def _holdout(facts: Facts) -> Iterator[Metric]:
    one = facts.items["holdout_performance"]
    if not facts.on_shipped_bytes(one.item.id):
        return
    name = str(one.value("metric") or "share of right answers")
    rows = one.value("holdout_rows")
    for measured, title, kind in (("metric", name, _kind(name)), ("macro_f1", "macro-F1", "f1")):
        value = one.value(f"tuned_{measured}")
        # The task's metric may be the macro-F1 itself.
        if _is_number(value) and not (measured == "macro_f1" and _kind(name) == "f1"):
            yield Metric(
                one.item.id,
                title,
                kind,
                value,
                one.value(f"tuned_{measured}_lower"),
                one.value(f"tuned_{measured}_upper"),
                one.value(f"base_{measured}"),
                rows,
                "hold-out",
            )


def _general(facts: Facts) -> Iterator[Metric]:
    one = facts.items["base_regression"]
    value = one.value("tuned_share")
    if facts.on_shipped_bytes(one.item.id) and _is_number(value):
        yield Metric(
            one.item.id,
            "general questions answered right",
            "accuracy",
            value,
            base=one.value("base_share"),
            rows=one.value("questions"),
            slice="general questions",
        )


def _kind(name: str) -> str:
    return "f1" if name.endswith("macro-F1") else _KINDS.get(name, "accuracy")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Its verdict rests on the manifest, so that the manifest can't state it; see lineage_statement.
UNSTATED = "lineage"


@dataclass(frozen=True)
class ItemFacts:
    """What a release says of one item."""

    item: Item
    verdict: Verdict  # as the manifest states it
    summary: str = "not run"
    because: str = "the step left no evidence"  # the broken limits, or why it was waived
    evidence: Evidence | None = None
    files: list[ManifestFile] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """True if the item measured something to its end."""
        return self.evidence is not None and not ended_by_error(self.evidence)

    @property
    def deciding(self) -> list[Measurement]:
        """The measurements that have a limit; none of an item that ended with an error."""
        found = self.evidence.measurements if self.evidence and self.measured else []
        return [one for one in found if one.rule is not None]

    def value(self, name: str) -> Any:
        """Return the value of a measurement; None if the item did not measure it to its end."""
        found = self.evidence.measurements if self.evidence and self.measured else []
        return next((one.value for one in found if one.name == name), None)


@dataclass(frozen=True)
class Facts:
    """A release as its own files describe it."""

    release: Release

    @cached_property
    def items(self) -> dict[str, ItemFacts]:
        """What it says of each item, by id, without `lineage`."""
        return {item.id: self._item(item) for item in ITEMS if item.id != UNSTATED}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of its run; {} if they were not shipped."""
        return self._json(CONFIG_FILE)

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """Its `dataset.json`, as the manifest states it."""
        return self.release.manifest.dataset

    @cached_property
    def licenses(self) -> list[dict[str, str]]:
        """The lines of `licenses.csv`, with the packages of `packages.csv` where that ships."""
        audited, beside_engine = self._rows(AUDITED.name), self._rows(ENGINE_PACKAGES.name)
        if not beside_engine:
            return audited
        return [line for line in audited if line.get("kind") != "package"] + beside_engine

    @cached_property
    def production(self) -> bool:
        """True if the run's profile was `production`."""
        return bool(self.config.get("profile") == "production")

    @cached_property
    def model_files(self) -> dict[str, str]:
        """SHA-256 of the files that the engine loads, by name in the release."""
        try:
            found = [*self.release.model_files().values(), *self.release.adapter_files().values()]
        except TunelineError:
            found = []
        uris = {ref.uri for ref in found}
        hashes = {
            entry.name: entry.sha256
            for entry in self.release.manifest.files
            if (ref := self.release.find(entry.name)) is not None and ref.uri in uris
        }
        return hashes or {
            entry.name: entry.sha256
            for entry in self.release.manifest.files
            if entry.name.startswith(ADAPTER_FOLDER)
        }

    @cached_property
    def finished_at(self) -> str:
        """The time at which the last item ended, RFC 3339; that of the run if none did."""
        ends = [
            datetime.fromisoformat(one.evidence.started_at)
            + timedelta(seconds=one.evidence.seconds)
            for one in self.items.values()
            if one.evidence is not None
        ]
        if not ends:
            return str(self.release.manifest.run.get("created_at", ""))
        stamp = max(ends).astimezone(UTC).isoformat(timespec="milliseconds")
        return stamp.replace("+00:00", "Z")

    def on_shipped_bytes(self, item: str) -> bool:
        """Return True if an item measured the bytes that the release ships."""
        stated = self.items[item].value("candidate_sha256")
        return stated is not None and stated == weights_sha256(self.release)

    def with_verdict(self, *verdicts: Verdict) -> Iterator[ItemFacts]:
        """Yield the items that have one of the verdicts, in the order of the checklist."""
        return (one for one in self.items.values() if one.verdict in verdicts)

    def _item(self, item: Item) -> ItemFacts:
        stated = self.release.manifest.evidence.get(item.id)
        if stated is None:
            return ItemFacts(item, Verdict.NOT_RUN)
        folder = f"evidence/{item.id}/"
        return ItemFacts(
            item,
            Verdict(stated.verdict),
            stated.summary,
            stated.because,
            self.release.evidence(item.id),
            [entry for entry in self.release.manifest.files if entry.name.startswith(folder)],
        )

    def _rows(self, name: str) -> list[dict[str, str]]:
        raw = self.release.read(name)
        return list(csv.DictReader(io.StringIO(raw.decode()))) if raw else []

    def _json(self, name: str) -> dict[str, Any]:
        raw = self.release.read(name)
        document = json.loads(raw) if raw else {}
        return document if isinstance(document, dict) else {}
