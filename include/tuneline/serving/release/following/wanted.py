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
from tuneline.artifacts.releases import open_release, read_release, readable, standing_moves
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
        version: the version.
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
        go_back: completes a withdrawal of a model's released version that broke off.
        refused: why a model's pointer is not followed, by model.
    """

    store: Store
    folder: Path
    trust: Trust | None
    go_back: Callable[[str], None]
    refused: dict[str, str] = field(default_factory=dict)

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

        Raises:
            RetryableError: if the store can't be read now.
        """
        return [found for name in names if (found := self._wanted(name)) is not None]

    def _wanted(self, name: str) -> Wanted | None:
        try:
            pointer = read_release(self.store, name)
            if pointer is None or pointer == self._accepted.get(name):
                return self._kept[name] if pointer else None
            found = self._follow(pointer)
        except RetryableError:
            raise
        except TunelineError as error:
            self.refused[name] = str(error)
            return self._kept.get(name)
        if found is None:
            # Its version was withdrawn, so that what was kept may be that version.
            return None
        if found.version == pointer.version:
            self.refused.pop(name, None)
            self._accepted[name] = pointer
        self._keep(found)
        return found

    def _follow(self, pointer: ReleasePointer) -> Wanted | None:
        """Return what a pointer wants served; the version before in place of a withdrawn one.

        Raises:
            TunelineError: if the pointer, or the version that it names, is refused.
        """
        name, version, kept = pointer.name, pointer.version, self._kept.get(pointer.name)
        moves = [move.sha256 for move in pointer.history]
        if kept is not None and kept.move is not None and kept.move not in moves:
            raise UserError(
                f"the pointer of {name} was set back: it does not go on from {kept.version}, which "
                f"was served before; if the store was restored on purpose, delete "
                f"{self.folder / FOLLOWED_FILE}"
            )
        if self.trust and (differences := self.trust.in_pointer(self.store, name, version)):
            raise UserError("; ".join(differences))
        open_release(self.store, pointer)
        move, before = moves[-1] if moves else None, self._before(pointer)
        why = self._withdrawal(pointer, version)
        if why is None:
            return Wanted(name, version, before[0] if before else None, move)
        self.refused[name] = f"{version} was withdrawn: {why}"
        try:
            self.go_back(name)
        except TunelineError as error:
            self.refused[name] += f"; the version before can't be released again: {error}"
        return Wanted(name, before[0], before[1] if before[1:] else None, move) if before else None

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
            self._kept[wanted.name] = wanted
            write_whole(self.folder / FOLLOWED_FILE, _KEPT.dump_json(self._kept, indent=1))
