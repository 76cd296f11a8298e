"""Say whether the evidence of a run still rests on what the run holds.

Each evidence states the hashes of what its step read (`reads`). They are compared with the hashes
that the other steps' records state now, along the graph: evidence that rests on evidence out of
date is out of date too. Only records are read, a few kilobytes each, and no artifact is hashed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.releases import manifest_key, read_release
from tuneline.catalogue import STEPS
from tuneline.evidence import Evidence, Read, Record
from tuneline.reads import CONFIG, MEASUREMENTS, hash_measurements
from tuneline.run import Run

_STEPS = frozenset(step.id for step in STEPS)
# It can't write what it left a second time.
_WRITES_ONCE = "lineage"


@dataclass(frozen=True)
class Stale:
    """Why the evidence of a step is out of date.

    Attributes:
        step: the step.
        because: which input of which step has changed, as a sentence.
        root: the step before it whose own input changed, which is to be run again first; None if
            it is this one.
    """

    step: str
    because: str
    root: Stale | None = None


@dataclass
class Freshness:
    """What is up to date in a run, as it is at the first look.

    Attributes:
        run: the run.
        deep: whether the hashes with which the store holds the artifacts are compared too, one
            request for each, so that an artifact that was swapped beside its record shows.
    """

    run: Run
    deep: bool = False
    _entries: dict[str, Evidence | Record | None] = field(default_factory=dict)
    _known: dict[str, Stale | None] = field(default_factory=dict)

    def entry(self, step: str) -> Evidence | Record | None:
        """Return the evidence or record of a step, None if it has not been run."""
        if step not in self._entries:
            self._entries[step] = self.run.find_entry(step)
        return self._entries[step]

    def stale(self, step: str) -> Stale | None:
        """Return why a step's evidence is out of date; None if it is not, or there is none."""
        if step not in self._known:
            # A read of a step that in turn read this one can't come from the graph.
            self._known[step] = None
            self._known[step] = self._find(step)
        return self._known[step]

    def outdated(self, steps: Iterable[str]) -> list[str]:
        """Return a sentence for each cause that puts evidence of some steps out of date."""
        resting: dict[Stale, list[str]] = {}
        for found in filter(None, map(self.stale, steps)):
            names = resting.setdefault(found.root or found, [])
            if found.root is not None:
                names.append(found.step)
        return [
            f"{root.because}; the evidence of {', '.join(names)} rests on it"
            if names
            else root.because
            for root, names in resting.items()
        ]

    def _find(self, step: str) -> Stale | None:
        entry = self.entry(step)
        if entry is None:
            return None
        changed = [(read, now) for read in entry.reads if (now := self._now(read)) != read.sha256]
        if changed:
            more = f" (and {len(changed) - 1} more of its inputs changed)" if changed[1:] else ""
            return Stale(step, f"{_difference(step, *changed[0])}{more}: {self._advice(step)}")
        for name in dict.fromkeys(read.step for read in entry.reads if read.step in _STEPS):
            before = self.stale(name)
            if before is not None:
                root = before.root or before
                why = f"{step} rests on {root.step}, which is out of date: {root.because}"
                return Stale(step, why, root)
        return None

    def _advice(self, step: str) -> str:
        """Return what to do about a step whose input has changed."""
        if step != _WRITES_ONCE:
            return "run it again"
        store, name, version = self.run.store, self.run.config.name, self.run.run_id
        if not store.exists(manifest_key(name, version)):
            return "run it again, and promote after it"
        pointer = read_release(store, name)
        if pointer is not None and version in {move.version for move in pointer.history}:
            return (
                f"{name} {version} was released with what its manifest states, and stays so; start "
                "a new run for a version with the new result"
            )
        return "its manifest is written once, so start a new run for a new version"

    def _now(self, read: Read) -> str | None:
        """Return the hash that something has now, None if it is not there."""
        if read.step == CONFIG:
            return self.run.sections.get(read.name)
        entry = self.entry(read.step) if read.step in _STEPS else None
        if entry is None:
            return None
        if read.name == MEASUREMENTS:
            return hash_measurements(entry)
        stated = next((ref.sha256 for ref in entry.artifacts if ref.name == read.name), None)
        if stated is not None and (stated != read.sha256 or not self.deep):
            return stated
        # Either a file beside the record, or one that is to be compared with it.
        held = self.run.store.find(Artifact(read.step, read.name).key(self.run))
        return held.sha256 if held else None


def _difference(step: str, read: Read, now: str | None) -> str:
    what = f"{read.name} of {'the configuration' if read.step == CONFIG else read.step}"
    if read.sha256 is None:
        return f"{step} found no {what}, which is there now"
    was = f"{step} read {what} as {read.sha256[:8]}…, which is "
    return was + ("gone now" if now is None else f"now {now[:8]}…")
