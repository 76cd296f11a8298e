"""A training run in Weights & Biases: online with a key, offline without.

An offline run is a real run directory that `tuneline run sync-tracking` uploads later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tuneline.artifacts.training import TrackedRun
from tuneline.training.tracking.sender import Sender, short_reason
from tuneline.training.tracking.tracked_run import Description

# Longest wait for an unreachable server at the start and at the end of training, seconds.
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0

_NO_KEY = "WANDB_API_KEY is not set"


def open_wandb(
    description: Description, out: Path, log: Callable[[str], None]
) -> tuple[TrackedRun, WandbTracker | None]:
    """Open the run, the same one again for a training that is resumed.

    Args:
        description: description of the run.
        out: output folder of the step; the files of the run go below `wandb/`.
        log: function that takes a line.

    Returns:
        The run and its tracker; no tracker if not even an offline run could be opened.
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
    """An open run in Weights & Biases, whose own process sends metrics; see `Tracker`.

    Handing them to that process takes milliseconds, so training leaves it to a thread.
    """

    def __init__(
        self, run: Any, tracked: TrackedRun, out: Path, log: Callable[[str], None]
    ) -> None:
        self._run, self._tracked, self._out = run, tracked, out
        self._sender: Sender[tuple[int, dict[str, float]]] = Sender(
            self._send, lambda what: log(f"Weights & Biases {what}"), at_once=1
        )

    def steps_logged(self) -> tuple[int, int]:
        """See `Tracker`; none, since W&B itself leaves out steps that a resumed run has.

        The directory of an offline run is new, whatever came before.
        """
        return -1, -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._sender.put((step, dict(metrics)))

    def _send(self, entries: Sequence[tuple[int, dict[str, float]]]) -> None:
        for step, metrics in entries:
            self._run.log(metrics, step=step)

    def close(self, *, failed: bool) -> TrackedRun:
        """See `Tracker`."""
        missed = self._sender.close()
        reason = self._tracked.reason
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:  # whatever breaks, training is done
            reason = short_reason(error)
        for path in (self._out / "wandb").glob("*"):
            # A store has no links.
            if path.is_symlink():
                path.unlink()
        return replace(self._tracked, missed=missed, reason=reason)
