"""A training run in Weights & Biases: online with a key, offline without.

An offline run is a real run directory that `tuneline run sync-tracking` uploads later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tuneline.artifacts.training import TrackedRun
from tuneline.training.tracking.runs import Description, short_reason

# Longest wait for an unreachable server at the start and at the end of training, seconds.
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0

_NO_KEY = "WANDB_API_KEY is not set"


def open_wandb(
    description: Description, out: Path, log: Callable[[str], None]
) -> tuple[TrackedRun, WandbTracker | None]:
    """Open the run, the same one again for a training that is resumed; its files go below `wandb/`.

    No tracker if not even an offline run could be opened.
    """
    try:
        run, reason = _open(description, out, log)
    except Exception as error:  # whatever breaks, training goes on
        reason = short_reason(error)
        log(f"Weights & Biases could not be opened ({reason}); training goes on without it")
        return TrackedRun("wandb", "unreachable", reason=reason, key=description.key), None
    offline = bool(run.settings._offline)  # the one place that knows
    tracked = TrackedRun(
        "wandb",
        "offline" if offline else "online",
        run.id,
        None if offline else run.url,
        Path(run.dir).parent.resolve().relative_to(out.resolve()).as_posix(),
        reason,
        key=description.key,
    )
    return tracked, WandbTracker(run, tracked, out, log)


def _open(description: Description, out: Path, log: Callable[[str], None]) -> tuple[Any, str]:
    import wandb

    def init(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=description.project,
            name=description.name,
            id=description.key,
            dir=str(out),
            mode=mode,
            resume="allow",
            config={**description.settings, **description.tags},
            # The program's arguments, host and code stay here: paths and names are nobody's.
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                disable_git=True,
                disable_code=True,
                save_code=False,
                symlink=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                program="tuneline",
            ),
        )

    if not os.environ.get("WANDB_API_KEY"):
        return init("offline"), _NO_KEY
    if os.environ.get("WANDB_MODE", "online") != "online":
        return init("offline"), f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    try:
        return init("online"), ""
    except wandb.errors.Error as error:
        reason = short_reason(error)
        log(f"Weights & Biases can't be reached ({reason}); tracking offline")
        # Its process still holds the run's id for the server that did not answer.
        wandb.teardown()
        return init("offline"), reason


class WandbTracker:
    """An open run in Weights & Biases, whose own process sends metrics; see `Tracker`."""

    def __init__(
        self, run: Any, tracked: TrackedRun, out: Path, log: Callable[[str], None]
    ) -> None:
        self._run, self._tracked, self._out, self._log = run, tracked, out, log
        self._missed = 0

    def steps_logged(self) -> tuple[int, int]:
        """See `Tracker`; none, since W&B itself leaves out steps that a resumed run has.

        The directory of an offline run is new, whatever came before.
        """
        return -1, -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:  # whatever breaks, training goes on
            if not self._missed:
                self._log(f"Weights & Biases is lost ({short_reason(error)}); training goes on")
            self._missed += 1

    def close(self, *, failed: bool) -> TrackedRun:
        """See `Tracker`."""
        reason = self._tracked.reason
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:  # whatever breaks, training is done
            reason = short_reason(error)
        for path in (self._out / "wandb").glob("*"):
            # A store has no links.
            if path.is_symlink():
                path.unlink()
        return replace(self._tracked, missed=self._missed, reason=reason)
