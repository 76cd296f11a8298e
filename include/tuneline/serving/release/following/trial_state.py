"""The canaries of a follower on its disk, so that the next one goes on with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tuneline.files import write_whole
from tuneline.serving.release.canary.judge import Known

_FILE = "canaries.json"


@dataclass(frozen=True)
class TrialState:
    """A canary that is not decided.

    Attributes:
        version: the version that is tried.
        began: Unix time of its begin.
        counting: Unix time at which the gateway began its counts, None before the first of them.
        known: what was seen of it.
    """

    version: str
    began: float
    counting: float | None
    known: Known


_STATES: TypeAdapter[dict[str, TrialState]] = TypeAdapter(dict[str, TrialState])


def read_trials(folder: Path) -> dict[str, TrialState]:
    """Return the canaries that an earlier follower of a folder left, by model.

    Raises:
        ValueError: if they can't be read.
    """
    try:
        return _STATES.validate_json((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise ValueError(f"{folder / _FILE} can't be read ({type(error).__name__})") from None


def write_trials(folder: Path, trials: Mapping[str, TrialState]) -> None:
    """Replace them in one step.

    Raises:
        OSError: if they can't be written.
    """
    write_whole(folder / _FILE, _STATES.dump_json(dict(trials)))
