"""Retention: which runs of a store may go, why the others stay, and their deletion.

A run that ended unreleased goes whole. Of a release that later ones have superseded the bulk goes;
manifest, log, evidence and the dataset stay, since later runs are compared with them and `tuneline
verify` reads them. Of other released runs what only a training reads goes: checkpoints, engines.

`claim` decides between a release and a deletion that meet: whoever writes it first goes on. What a
killed prune has begun, the next one ends.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.release_log import Canary, Waived, Withdrawn, read_log
from tuneline.artifacts.releases import (
    CONFIG_FILE,
    POINTERS,
    SERVED,
    manifest_key,
    model_names,
    model_prefix,
    previous_version,
    read_release,
)
from tuneline.errors import UserError
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.run import Run, now
from tuneline.store import AlreadyThere, Changed, Entry, NotThere, Store

Kind = Literal["unreleased", "superseded", "copies", "kept"]
_CLAIM = "claim.json"
# Of a released run no release reads these: the training's own, and engines that the version holds.
_COPIES = ("training/train/checkpoints/", "work/", "deployment/build_engine/engine/")
# Of a superseded one these stay: what later runs and `tuneline verify` read.
_DATASET = "data/distribution_balancing/dataset.parquet"
_DOCUMENTS = (
    "run.json",
    CONFIG_FILE,
    _CLAIM,
    "evidence.json",
    "record.json",
    "gate.json",
    _DATASET,
)
_NEVER = datetime.min.replace(tzinfo=UTC)
_RUN = re.compile(r"\bruns/([^/\"\\\s]+)")


@dataclass(frozen=True)
class Retention:
    """Limits: runs written to since `before` stay, and the last `keep` releases of each pointer."""

    before: datetime
    keep: int


def retention(older_than: str, keep: int) -> Retention:
    """Return the retention of a command line; `older_than` is a number of days, such as `90d`."""
    match = re.fullmatch(r"([0-9]{1,5})d", older_than)
    if match is None or not int(match[1]):
        raise UserError(f"--older-than {older_than!r}: write a number of days, at least 1d")
    if keep < 1:
        raise UserError(f"--keep {keep}: the released version stays, so keep at least 1")
    return Retention(datetime.now(UTC) - timedelta(days=int(match[1])), keep)


@dataclass
class Fate:
    """The decision on a run and its reason; `bytes` and `objects` count what is deleted."""

    run: str
    kind: Kind
    why: str
    model: str | None = None
    bytes: int = 0
    objects: int = 0

    @property
    def roots(self) -> list[str]:
        """The folders of the run and of its version."""
        version = [model_prefix(self.model, self.run)] if self.model else []
        return [*version, f"runs/{self.run}"]


def claim_release(run: Run) -> None:
    """Have no prune delete a run any more; UserError if one has begun to."""
    if _claim(run.store, run.run_id, "release") != "release":
        raise UserError(
            f"{run.uri} is not released: `tuneline run prune` has begun to "
            "delete it; start a new run"
        )


def _claim(store: Store, run_id: str, wanted: str) -> str:
    """Write who goes on with a run; return who does."""
    with suppress(AlreadyThere):
        document = json.dumps({"for": wanted, "at": now()})
        store.put_bytes(f"runs/{run_id}/{_CLAIM}", document.encode(), once=True)
    return _claimed(store, run_id)


def _claimed(store: Store, run_id: str) -> str:
    return str(json.loads(store.get_bytes(f"runs/{run_id}/{_CLAIM}"))["for"])


@dataclass
class _Found:
    """The objects of a run and of its version, counted."""

    written: datetime = _NEVER
    # Number and bytes of what would go, by kind.
    sizes: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    model: str | None = None
    claimed: bool = False

    def add(self, entry: Entry, kinds: Iterator[Kind]) -> None:
        self.written = max(self.written, entry.modified)
        for kind in kinds:
            self.sizes[kind][0] += 1
            self.sizes[kind][1] += entry.bytes


def _kinds(key: str) -> Iterator[Kind]:
    """Yield the kinds of run with which an object goes."""
    yield "unreleased"
    first, *path = key.split("/")
    name = "/".join(path[1:] if first == "runs" else path[2:])
    if first == "runs" and name.startswith(_COPIES):
        yield "copies"
    if name.startswith(SERVED) if first == "models" else not name.endswith(_DOCUMENTS):
        yield "superseded"


class Pruning:
    """The runs of a store under a retention."""

    def __init__(self, store: Store, rules: Retention) -> None:
        """Read pointers, logs and listings; nothing is deleted."""
        self.store, self.rules = store, rules
        self._released: dict[str, str] = {}  # model by version
        self._needed: dict[str, str] = {}  # why a version stays whole
        self._pruned: set[str] = set()  # versions that a prune has begun to delete
        self._found: defaultdict[str, _Found] = defaultdict(_Found)
        for which in POINTERS:
            for name in model_names(store, which):
                if (pointer := read_release(store, name, which)) is not None:
                    self._read(pointer)
        for root in ("runs", "models"):
            for entry in store.entries(root):
                self._count(entry)
        self._named = self._mentions()

    def _read(self, pointer: ReleasePointer) -> None:
        """Note which versions of a pointer have to stay."""
        last = list(dict.fromkeys(move.version for move in reversed(pointer.history)))
        for version in last:
            self._released[version] = pointer.name
            lines = [line.event for line in read_log(self.store, pointer.name, version).lines()]
            canaries = [event.outcome for event in lines if isinstance(event, Canary)]
            if canaries[-1:] == ["started"]:
                self._needed[version] = "its canary is undecided"
            if any(isinstance(event, Withdrawn) and event.pruned for event in lines):
                self._pruned.add(version)
            if any(isinstance(event, Waived) for event in lines):
                self._needed[version] = "it was released with a waiver"
        for version in last[: self.rules.keep]:
            self._needed[version] = f"one of the last {self.rules.keep} releases of {pointer.name}"
        if before := previous_version(pointer):
            self._needed[before] = f"a rollback of {pointer.name} goes back to it"
        self._needed[pointer.version] = f"released to {pointer.pointer}"

    def _count(self, entry: Entry) -> None:
        first, *path = entry.key.split("/")
        if len(path) < (2 if first == "runs" else 3):
            return
        run_id = path[0] if first == "runs" else path[1]
        found = self._found[run_id]
        found.add(entry, _kinds(entry.key))
        found.claimed |= first == "runs" and path[1] == _CLAIM
        if first == "models":
            found.model = path[0]

    def _mentions(self) -> Mapping[str, str]:
        """Return the runs that others name: in the settings of one that stays, in this budget."""
        named: dict[str, str] = {}
        month = f"{datetime.now(UTC):%Y-%m}"
        for key in self.store.keys("retraining"):
            document = json.loads(self.store.get_bytes(key))
            if str(document.get("at") or document.get("day", "")).startswith(month):
                named[str(document["run"])] = "the budget of this month counts its cost"
        for run_id, found in self._found.items():
            if found.written >= self.rules.before or run_id in self._needed:
                with suppress(NotThere):
                    text = self.store.get_bytes(f"runs/{run_id}/{CONFIG_FILE}").decode()
                    others = {*_RUN.findall(text)} - {run_id}
                    named |= dict.fromkeys(others, f"the settings of {run_id} name it")
        return named

    def fates(self) -> Iterator[Fate]:
        """Yield what happens to each run, in the order of their ids."""
        for run_id, found in sorted(self._found.items()):
            kind, why = self._judge(run_id, found)
            objects, size = found.sizes[kind]
            if kind in ("superseded", "copies") and not objects:
                kind, why = "kept", self._needed.get(run_id, "only its documents are left")
            model = self._released.get(run_id) or found.model
            yield Fate(run_id, kind, why, model, *((0, 0) if kind == "kept" else (size, objects)))

    def _judge(self, run_id: str, found: _Found) -> tuple[Kind, str]:
        written = f"last written {found.written:%Y-%m-%d}"
        begun = found.claimed and _claimed(self.store, run_id)
        if begun == "prune" or run_id in self._pruned:
            kind: Kind = "superseded" if run_id in self._pruned else "unreleased"
            return kind, "an earlier prune has begun to delete it"
        if found.written >= self.rules.before or run_id in self._named:
            return "kept", self._named.get(run_id) or self._needed.get(run_id, written)
        if run_id in self._needed:
            return "copies", f"{self._needed[run_id]}; its checkpoints and engines go"
        if begun and run_id not in self._released:
            return "kept", "its release has begun; run promote again"
        if run_id in self._released:
            return "superseded", f"a release that later ones have superseded, {written}"
        return "unreleased", f"ended unreleased, {written}"

    def carry_out(self, fate: Fate, by: str) -> Fate:
        """Delete what goes, unless it is needed since it was listed; return what has happened."""
        listed = self._found[fate.run].written
        entries = (entry for root in fate.roots for entry in self.store.entries(root))
        if max(entry.modified for entry in entries) > max(listed, self.rules.before):
            return Fate(fate.run, "kept", "it was written to meanwhile", fate.model)
        if fate.kind == "unreleased":
            if _claim(self.store, fate.run, "prune") != "prune":
                return Fate(fate.run, "kept", "its release has begun meanwhile", fate.model)
            self._delete_whole(fate)
        elif fate.kind == "superseded" and not self._withdraw(fate, by):
            return Fate(fate.run, "kept", "the model's pointer has moved meanwhile", fate.model)
        if fate.kind in ("superseded", "copies"):
            keys = (key for root in fate.roots for key in self.store.keys(root))
            self.store.delete(key for key in keys if fate.kind in _kinds(key))
        return fate

    def _delete_whole(self, fate: Fate) -> None:
        """Delete a run: what makes it one goes first, the claim last."""
        claim, config = (f"runs/{fate.run}/{name}" for name in (_CLAIM, CONFIG_FILE))
        self.store.delete([manifest_key(fate.model, fate.run), config] if fate.model else [config])
        for root in fate.roots:
            self.store.delete(key for key in self.store.keys(root) if key != claim)
        self.store.delete([claim])

    def _withdraw(self, fate: Fate, by: str) -> bool:
        """Log that a superseded version is served no more, unless its pointer moves meanwhile."""
        assert fate.model is not None
        if fate.run in self._pruned:
            return True
        for which in POINTERS:
            pointed = read_pointer(self.store, fate.model, which)
            pointer = pointed.pointer
            if pointer is None or fate.run not in pointer.heads:
                continue
            if fate.run in (pointer.version, previous_version(pointer)):
                return False
            event = Withdrawn(by=by, reason=f"pruned: {fate.why}", pruned=True)
            with suppress(Changed):
                record(pointed, fate.run, pointer.manifest_sha256, [event])
                return True
        return False
