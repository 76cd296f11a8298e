"""What happens between optimiser steps: evaluate, keep adapters, save, watch, say how far it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tuneline.config.loss_rules import LossRulesConfig
from tuneline.progress import LOG_SECONDS
from tuneline.store import sha256_file
from tuneline.training.loop.base_weights import save_adapter
from tuneline.training.loop.live_checkpoints import LiveCheckpoints
from tuneline.training.loop.loss_rules import Trip, Watch
from tuneline.training.processes.group import ProcessGroup

ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Evaluated:
    """One validation pass.

    Attributes:
        step: optimiser steps done.
        eval_loss: mean loss of a learned token, nats.
        eval_loss_error: its standard error over the draw of rows.
        adapter_sha256: of the adapter's weights at that step.
        kept: whether the adapter is still there.
    """

    step: int
    eval_loss: float
    eval_loss_error: float
    adapter_sha256: str
    kept: bool

    @property
    def folder(self) -> str:
        """Name of the folder that holds its adapter."""
        return f"step-{self.step:06d}"


def best_of(evaluations: list[Evaluated]) -> Evaluated:
    """The lowest validation loss, the earliest of equals; NaN never wins."""
    return min(evaluations, key=lambda e: (e.eval_loss != e.eval_loss, e.eval_loss, e.step))


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Steps after which to evaluate: evenly spread, the last one among them."""
    count = min(steps, evaluations)
    return {round(i * steps / count) for i in range(1, count + 1)}


class EvaluateAt(TrainerCallback):
    """Orders an evaluation and a checkpoint at fixed steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if state.global_step in self.steps:
            control.should_evaluate = True
            control.should_save = True


class KeepAdapters(TrainerCallback):
    """Saves the adapter of every evaluation and keeps the best few."""

    def __init__(self, folder: Path, keep: int, base_name: str) -> None:
        """Keep adapters below a folder; evaluations that are noted there already count.

        Args:
            folder: of `evaluations.json` and one folder per kept adapter.
            keep: how many, the best always.
            base_name: what adapters name as their base.
        """
        self.folder, self.keep, self.base_name = folder, keep, base_name
        folder.mkdir(parents=True, exist_ok=True)
        noted = folder / "evaluations.json"
        entries = json.loads(noted.read_text()) if noted.exists() else []
        self.evaluations = [Evaluated(**entry) for entry in entries]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        step = state.global_step
        target = self.folder / f"step-{step:06d}"
        save_adapter(kwargs["model"], target, self.base_name)
        entry = Evaluated(
            step=step,
            eval_loss=metrics["eval_loss"],
            eval_loss_error=metrics["eval_loss_error"],
            adapter_sha256=sha256_file(target / ADAPTER_FILE),
            kept=True,
        )
        self.evaluations = [*(e for e in self.evaluations if e.step != step), entry]
        self._prune()
        entries = [asdict(e) for e in self.evaluations]
        (self.folder / "evaluations.json").write_text(json.dumps(entries, indent=1))

    def _prune(self) -> None:
        by_loss = sorted(
            (e for e in self.evaluations if e.kept),
            key=lambda e: (e.eval_loss != e.eval_loss, e.eval_loss, e.step),
        )
        for entry in by_loss[self.keep :]:
            shutil.rmtree(self.folder / entry.folder, ignore_errors=True)
            at = self.evaluations.index(entry)
            self.evaluations[at] = Evaluated(**{**asdict(entry), "kept": False})


class ShareRandomState(TrainerCallback):
    """Brings the random states of all processes into rank 0's checkpoint, before it is uploaded."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self.group.world_size == 1:
            return
        local = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        name = "rng_state_{}.pth"
        states = self.group.gather((local / name.format(self.group.rank)).read_bytes())
        if not self.group.is_main:
            shutil.rmtree(local)
            return
        for rank, content in enumerate(states):
            (local / name.format(rank)).write_bytes(content)


class SaveLive(TrainerCallback):
    """Uploads every checkpoint of the trainer, and with it the adapters kept so far."""

    def __init__(self, live: LiveCheckpoints, evaluated: Path) -> None:
        self.live, self.evaluated = live, evaluated
        self.seconds = 0.0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        started = time.monotonic()
        local = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.live.save(state.global_step, {"trainer": local, "evaluated": self.evaluated})
        # In the store now; a disk must not fill with copies.
        shutil.rmtree(local, ignore_errors=True)
        self.seconds += time.monotonic() - started


class StopOnTrip(TrainerCallback):
    """Stops training when a rule of `loss_rules` trips."""

    def __init__(self, limits: LossRulesConfig, log: Callable[[str], None]) -> None:
        self.watch, self.log = Watch(limits), log
        self.trip: Trip | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self.trip is None:
            self.trip = self.watch.follow(state.log_history)
            if self.trip is not None:
                self.log(f"{self.trip.sentence}: training stops, the best checkpoint is kept")
        if self.trip is not None:
            control.should_training_stop = True


class SayProgress(TrainerCallback):
    """Says every few seconds how far training is."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self._last = 0.0
        self._first: tuple[int, float] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._first is None:
            self._first = (state.global_step, time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if "eval_loss" in logs:
            self.log(
                f"step {state.global_step} of {state.max_steps}: validation loss "
                f"{logs['eval_loss']:.4f} ± {logs['eval_loss_error']:.4f}"
            )
        now = time.monotonic()
        done = state.global_step
        due = now - self._last >= LOG_SECONDS or done == state.max_steps
        if "loss" not in logs or self._first is None or not due:
            return
        self._last = now
        steps = done - self._first[0]
        left = (now - self._first[1]) / max(1, steps) * (state.max_steps - done)
        self.log(
            f"step {done} of {state.max_steps}: loss {logs['loss']:.4f}, "
            f"{logs['tokens_per_second']:.0f} tokens/s, {left:.0f} s left"
        )
