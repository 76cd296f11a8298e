"""What a store wants served: the released version of each model, and what it falls back to.

Only a pointer that goes on from the one that was followed before is followed: a copy of an older
one would bring back what was left. While a pointer is refused, what was followed before stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tuneline.artifacts.governance import ReleasePointer
from tuneline.artifacts.release_log import read_line, read_log, withdrawal
from tuneline.artifacts.releases import read_release, readable, standing_moves
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.files import write_whole
from tuneline.serving.release.released import Trust
from tuneline.store import Store

FOLLOWED_FILE = "followed.json"


@dataclass(frozen=True)
class Wanted:
    """What is to be served of one model.

    Attributes:
        name: the model.
        version: the version; empty if none may be served.
        previous: the version that its requests fall back to, None if there is none.
        move: hash of the pointer's last move; None in a pointer without a history.
    """

    name: str
    version: str
    previous: str | None
    move: str | None = None


_KEPT: TypeAdapter[dict[str, Wanted]] = TypeAdapter(dict[str, Wanted])


@dataclass
class Pointers:
    """The release pointers of models, as far as they may be followed.

    Attributes:
        store: the store.
        folder: the follower's folder, where what was followed last is kept for the next follower.
        trust: whose releases are served; None follows all.
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
    refused: dict[str, str] = field(default_factory=dict)
    unread: str = ""

    def __post_init__(self) -> None:
        self._accepted: dict[str, ReleasePointer] = {}
        path = self.folder / FOLLOWED_FILE
        try:
            self._kept = _KEPT.validate_json(path.read_bytes()) if path.exists() else {}
        except (OSError, ValidationError) as error:
            raise UserError(
                f"{path} can't be read ({type(error).__name__}), so nothing says what was served "
                "before; restore it, or delete it to follow the pointers as they are"
            ) from None

    def wanted(self, names: Sequence[str]) -> list[Wanted]:
        """Return what is to be served, in order; models without a release are left out.

        What was followed before stands for what can't be read now, or is refused.
        """
        self.unread = ""
        return [found for name in names if (found := self._wanted(name)) is not None]

    def _wanted(self, name: str) -> Wanted | None:
        try:
            pointer = read_release(self.store, name)
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
        kept = self._kept.get(name)
        return kept if kept is not None and kept.version else None

    def _follow(self, pointer: ReleasePointer) -> str | None:
        """Keep what a pointer wants served, or the version before in place of a withdrawn one.

        Returns:
            Why its version was withdrawn, None if it was not.

        Raises:
            TunelineError: if the pointer, or the version that it names, is refused.
        """
        name, version, kept = pointer.name, pointer.version, self._kept.get(pointer.name)
        moves = [move.sha256 for move in pointer.history]
        if kept is not None and kept.move is not None and kept.move not in moves:
            raise UserError(
                f"the pointer of {name} was set back: it does not go on from what was followed "
                f"before; if the store was restored on purpose, delete "
                f"{self.folder / FOLLOWED_FILE}"
            )
        if self.trust and (differences := self.trust.in_pointer(self.store, name, version)):
            raise UserError("; ".join(differences))
        move, before = moves[-1] if moves else None, [*self._before(pointer), None, None]
        why = self._withdrawal(pointer, version)
        if why is None:
            self.admit(name, version, pointer.manifest_sha256)
            self._keep(Wanted(name, version, before[0], move))
            return None
        self._keep(Wanted(name, before[0] or "", before[1], move))
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

    def _keep(self, wanted: Wanted) -> None:
        if self._kept.get(wanted.name) != wanted:
            kept = {**self._kept, wanted.name: wanted}
            write_whole(self.folder / FOLLOWED_FILE, _KEPT.dump_json(kept, indent=1))
            self._kept = kept
