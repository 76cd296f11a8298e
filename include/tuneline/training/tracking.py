"""The experiment tracker's run: Weights & Biases, online with a key, offline without.

TRL's own integration logs into the run that is open here. An offline run is a
real run directory that `wandb sync` uploads later; nobody can watch it live,
which loss_monitoring says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How long an unreachable server may hold training up, seconds.
INIT_SECONDS = 30.0


@dataclass(frozen=True)
class TrackedRun:
    """A run at a tracker.

    Attributes:
        tracker: wandb, or none.
        run_id: the tracker's id of it.
        url: page where it can be watched live; None offline.
        mode: online, offline or none.
        directory: of the run's files, relative to the step's output; empty for none.
    """

    tracker: str
    run_id: str
    url: str | None
    mode: str
    directory: str


UNTRACKED = TrackedRun("none", "", None, "none", "")


@contextmanager
def track(
    trackers: list[str],
    *,
    project: str,
    name: str,
    run_id: str,
    settings: dict[str, Any],
    out: Path,
    log: Callable[[str], None],
) -> Iterator[TrackedRun]:
    """Open the tracker's run for the time of training.

    Args:
        trackers: from the configuration; none for no tracking.
        project: the tracker's project.
        name: what people read.
        run_id: stable over retries, so that a resumed training goes on in the same run.
        settings: hyperparameters, without paths or secrets.
        out: the step's output; the run's files go below `wandb/`.
        log: takes one line.
    """
    if "wandb" not in trackers:
        yield UNTRACKED
        return
    import wandb

    mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    run = _open(
        wandb,
        mode,
        project=project,
        name=name,
        run_id=run_id,
        settings=settings,
        out=out,
        log=log,
    )
    mode = "offline" if run.settings.mode == "offline" else "online"
    directory = Path(run.dir).parent.resolve().relative_to(out.resolve()).as_posix()
    try:
        yield TrackedRun("wandb", run.id, run.url if mode == "online" else None, mode, directory)
    except BaseException:
        run.finish(exit_code=1)
        raise
    else:
        run.finish()
    finally:
        _drop_links(out / "wandb")


def _open(
    wandb: Any,
    mode: str,
    *,
    project: str,
    name: str,
    run_id: str,
    settings: dict[str, Any],
    out: Path,
    log: Callable[[str], None],
) -> Any:
    def init(how: str) -> Any:
        return wandb.init(
            project=project,
            name=name,
            id=run_id,
            dir=str(out),
            mode=how,
            resume="allow",
            config=settings,
            # The program's arguments, host and code stay here: paths and names are nobody's.
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                disable_git=True,
                disable_code=True,
                save_code=False,
                symlink=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )

    if mode == "online":
        try:
            return init(mode)
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log(f"Weights & Biases can't be reached ({reason}); tracking offline")
    return init("offline")


def _drop_links(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_symlink():
            path.unlink()
