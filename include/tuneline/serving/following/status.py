"""How a follower stands, in a file that `tuneline follow --status` reads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tuneline.errors import UserError
from tuneline.files import write_whole

_FILE = "follow.json"
# A follower that is at work writes every few seconds, also while a probe takes its time.
_SILENT_SECONDS = 60.0


@dataclass(frozen=True)
class ModelRow:
    """A model: the version that is released, which one answers, and why they differ.

    Attributes:
        reason: why the released version is not served; None while it only starts.
        refused: why the store's pointer is not followed, None if it is.
    """

    name: str
    released: str | None
    served: str | None
    has_fallback: bool
    reason: str | None
    refused: str | None = None


@dataclass(frozen=True)
class EngineRow:
    """An engine: the releases that it serves, its port, its state, and what it lacks."""

    releases: str
    port: int
    state: str
    reason: str


@dataclass(frozen=True)
class Status:
    """How a follower stands; switched if the gateway serves what the follower wrote."""

    models: list[ModelRow]
    engines: list[EngineRow]
    switched: bool
    gateway: str | None
    at: float = field(default_factory=time.time)

    @property
    def complete(self) -> bool:
        """True if every released version is served."""
        served = all(row.served == row.released and not row.refused for row in self.models)
        return self.switched and served

    def write(self, folder: Path) -> None:
        """Write it into the follower's folder."""
        write_whole(folder / _FILE, _STATUS.dump_json(self, indent=1), lasting=False)

    def lines(self) -> list[str]:
        """Return it as text, a line for each model and engine."""
        found = []
        for row in self.models:
            if row.refused:
                found.append(f"{row.name}: its release pointer is not followed: {row.refused}")
            if row.released is None:
                continue
            what = "is served" if row.served == row.released else "is starting"
            if row.served != row.released and row.reason:
                what = f"is not served: {row.reason}"
            behind = f"; {row.served} serves" if row.served not in (None, row.released) else ""
            fallback = "; the release before it stands behind it" if row.has_fallback else ""
            found.append(f"{row.name}: {row.released} {what}{behind}{fallback}")
        found += [f"engine {e.releases} on {e.port}: {e.state} {e.reason}" for e in self.engines]
        if not self.switched:
            found.append(f"gateway: {self.gateway or 'it has not taken the last change yet'}")
        return found or ["no model is released yet"]


_STATUS: TypeAdapter[Status] = TypeAdapter(Status)


def read_status(folder: Path) -> Status:
    """Return how the follower of a folder stands.

    Raises:
        UserError: if no follower is at work there.
    """
    try:
        found = _STATUS.validate_json((folder / _FILE).read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"no follower has worked in {folder}; start `tuneline follow`") from None
    age = time.time() - found.at
    if age > _SILENT_SECONDS:
        raise UserError(f"the follower of {folder} has been silent for {age:.0f} s; start it again")
    return found
