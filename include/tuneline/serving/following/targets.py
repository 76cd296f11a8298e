"""Which releases are to be served, and which of them share an engine.

Only a pointer that goes on from the one that was followed before is followed: a copy of an older
one would bring back what was left. While a pointer is refused, what was followed before stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tuneline.artifacts.governance import PointerName, ReleasePointer
from tuneline.artifacts.release_log import read_line, read_log, withdrawal
from tuneline.artifacts.releases import Release, pointer_key, read_release, readable, standing_moves
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.files import write_whole
from tuneline.serving.following.gateway_file import ReleaseFacts, read_facts
from tuneline.serving.following.release import Trust, adapter_name, open_version, upstream_of
from tuneline.store import CorruptObject, Store

# It is tried again after this long, then after twice as long, and so on.
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 300.0

FOLLOWED_FILE = "followed.json"


@dataclass
class Failure:
    """The failures of one unit in a row."""

    reason: str = ""
    count: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """True if it is time for another try."""
        wait = min(_RETRY_SECONDS * 2 ** (self.count - 1), _LONGEST_RETRY_SECONDS)
        return self.count == 0 or time.monotonic() - self.since >= wait

    def note(self, reason: str) -> bool:
        """Note a failed try; return False for what is found again before another one was due."""
        if not self.over:
            return False
        self.reason, self.count, self.since = reason, self.count + 1, time.monotonic()
        return True


@dataclass(frozen=True)
class EngineUnit:
    """The releases that one engine serves; several are adapters of one base."""

    engine: str
    releases: tuple[Release, ...]

    @property
    def key(self) -> str:
        """Its name in logs, files and in the status."""
        return "+".join(adapter_name(release) for release in self.releases)

    def serves(self, name: str, version: str) -> bool:
        """Return True if a version of a model is among its releases."""
        return any((r.name, r.version) == (name, version) for r in self.releases)


class EngineUnits:
    """Groups versions into units; what a release says is read once, since it never changes."""

    def __init__(self, store: Store, folder: Path, trust: Trust | None) -> None:
        self._store = store
        self._folder = folder
        self._trust = trust
        self._known: dict[tuple[str, str], tuple[Release, ReleaseFacts]] = {}
        self._refused: dict[tuple[str, str], Failure] = {}

    def of(self, versions: Iterable[tuple[str, str]]) -> list[EngineUnit]:
        """Return the units of versions of different models.

        Raises:
            TunelineError: if a version can't be read, or may not be served here.
        """
        groups: dict[tuple[str, str], list[Release]] = {}
        for name, version in versions:
            release = self._release(name, version)
            # What has no base to share is a group of its own.
            base = release.apart.base.sha256 if release.apart else f"{name}@{version}"
            groups.setdefault((release.engine, base), []).append(release)
        return [EngineUnit(engine, tuple(found)) for (engine, _), found in groups.items()]

    def admit(self, name: str, version: str, sha256: str) -> None:
        """Refuse a version with another manifest than the pointer says, or that can't be served.

        Raises:
            TunelineError: if it is so, or the version can't be read.
        """
        release = self._release(name, version)
        if release.sha256 != sha256:
            raise CorruptObject(
                f"{release.uri} has SHA-256 {release.sha256}, the pointer of {name} says {sha256}"
            )

    def facts(self, name: str, version: str) -> ReleaseFacts:
        """Return what a version states for the gateway, once `of` has read it."""
        return self._known[name, version][1]

    def upstream(self, unit: EngineUnit, name: str, base_url: str) -> dict[str, object]:
        """Return the gateway's entry of a model on the engine of a unit."""
        place = next(i for i, release in enumerate(unit.releases) if release.name == name)
        return upstream_of(unit.releases[place], place, base_url)

    def _release(self, name: str, version: str) -> Release:
        """Return a version, with everything that is read of it while it is served."""
        key = (name, version)
        if key not in self._known:
            refused = self._refused.setdefault(key, Failure())
            if not refused.over:
                raise UserError(refused.reason)
            try:
                release = open_version(self._store, name, version, trust=self._trust)
                facts = read_facts(release, self._folder)
            except RetryableError:
                raise
            except TunelineError as error:
                refused.note(str(error))
                raise
            self._known[key] = release, facts
        return self._known[key][0]


@dataclass(frozen=True)
class Target:
    """What is to be served of one model; an empty version if none may be.

    Attributes:
        previous: the version that its requests fall back to, None if there is none.
        move: hash of the pointer's last move; None in a pointer without a history.
    """

    name: str
    version: str
    previous: str | None
    move: str | None = None


_KEPT: TypeAdapter[dict[str, Target]] = TypeAdapter(dict[str, Target])


@dataclass
class Pointers:
    """The release pointers of models, as far as they may be followed.

    Attributes:
        admit: refuses a version, by the hash of its manifest, that can't be served here.
        go_back: completes a withdrawal of a model's released version that broke off.
        refused: why a model's pointer is not followed, by model.
        unread: what keeps the store from being read now; empty if nothing does.
    """

    store: Store
    folder: Path
    trust: Trust | None
    admit: Callable[[str, str, str], object]
    go_back: Callable[[str], object]
    pointer: PointerName = "production"
    refused: dict[str, str] = field(default_factory=dict)
    unread: str = ""

    def __post_init__(self) -> None:
        self._accepted: dict[str, ReleasePointer] = {}
        self.path = path = self.folder / FOLLOWED_FILE
        try:
            self._kept = _KEPT.validate_json(path.read_bytes()) if path.exists() else {}
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{path} can't be read ({type(error).__name__}), so nothing says what was served "
                "before; restore it, or delete it to follow the pointers as they are"
            ) from None

    def _address(self, name: str) -> str:
        """Return the address of a pointer: one elsewhere does not go on from it."""
        return self.store.uri_of(pointer_key(name, self.pointer))

    def wanted(self, names: Sequence[str]) -> list[Target]:
        """Return what is to be served, in order; models without a release are left out.

        What was followed before stands for what can't be read now, or is refused.
        """
        self.unread = ""
        return [found for name in names if (found := self._wanted(name)) is not None]

    def _wanted(self, name: str) -> Target | None:
        try:
            pointer = read_release(self.store, name, self.pointer)
            if pointer is None:
                return None
            why = None if pointer == self._accepted.get(name) else self._follow(pointer)
        except RetryableError as error:
            self.unread = str(error)
        except TunelineError as error:
            self.refused[name] = str(error)
        else:
            if why is None:
                self.refused.pop(name, None)
                self._accepted[name] = pointer
            else:
                self.refused[name] = why
        kept = self._kept.get(self._address(name))
        return kept if kept is not None and kept.version else None

    def _follow(self, pointer: ReleasePointer) -> str | None:
        """Keep what a pointer wants served, or the version before in place of a withdrawn one."""
        name, version = pointer.name, pointer.version
        kept = self._kept.get(self._address(name))
        moves = [move.sha256 for move in pointer.history]
        if kept is not None and kept.move is not None and kept.move not in moves:
            raise UserError(
                f"the pointer of {name} was set back: it does not go on from what was followed "
                f"before; if the store was restored on purpose, delete {self.path}"
            )
        if self.trust and (differences := self.trust.in_pointer(self.store, name, version)):
            raise UserError("; ".join(differences))
        move, before = moves[-1] if moves else None, [*self._before(pointer), None, None]
        why = self._withdrawal(pointer, version)
        if why is None:
            self.admit(name, version, pointer.manifest_sha256)
            self._keep(Target(name, version, before[0], move))
            return None
        self._keep(Target(name, before[0] or "", before[1], move))
        try:
            self.go_back(name)
        except TunelineError as error:
            why += f"; the version before can't be released again: {error}"
        return f"{version} was withdrawn: {why}"

    def _before(self, pointer: ReleasePointer) -> list[str]:
        """Return the two versions before that may still be served, the last one first."""
        found: list[str] = []
        for move in reversed(standing_moves(pointer.history)[:-1]):
            try:
                if self._withdrawal(pointer, move.version) is None:
                    found.append(move.version)
            except RetryableError:
                raise
            except TunelineError:
                # Without a log that can be read it is no fallback.
                continue
            if found[1:]:
                break
        return found

    def _withdrawal(self, pointer: ReleasePointer, version: str) -> str | None:
        lines = read_log(self.store, pointer.name, version).lines()
        with readable(f"the pointer of {pointer.name}"):
            # Its last lines may not have reached their log yet.
            lines += [line for line in map(read_line, pointer.lines) if line.version == version]
        return withdrawal(lines)

    def _keep(self, wanted: Target) -> None:
        address = self._address(wanted.name)
        if self._kept.get(address) != wanted:
            kept = {**self._kept, address: wanted}
            write_whole(self.path, _KEPT.dump_json(kept, indent=1))
            self._kept = kept
