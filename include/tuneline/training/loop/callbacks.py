"""Events between optimiser steps: evaluate, keep the best adapters, stop on trouble, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tuneline.artifacts.training import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    Checkpoints,
    Evaluation,
    Trip,
)
from tuneline.config.training import LossRulesConfig
from tuneline.store import sha256_file
from tuneline.terminal import LOG_SECONDS
from tuneline.training.loop.base_weights import save_adapter
from tuneline.training.loop.loss_rules import Watch


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return the steps after which to evaluate: evenly spread, the last one among them."""
    count = min(steps, evaluations)
    return {round(i * steps / count) for i in range(1, count + 1)}


def folder_of(step: int) -> str:
    """Return the name of the folder that holds the adapter of an evaluation."""
    return f"step-{step:06d}"


def best_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sort by validation loss, the earliest of equals first and NaN last."""
    return sorted(evaluations, key=lambda e: (e.eval_loss != e.eval_loss, e.eval_loss, e.step))


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
    """Saves the adapter of every evaluation and keeps the best few.

    Attributes:
        evaluations: all of them, also those before the training was resumed.
    """

    def __init__(self, folder: Path, keep: int, base_name: str) -> None:
        """Keep adapters below a folder; the evaluations that it already lists count.

        Args:
            folder: holds `evaluations.json` and one folder per kept adapter.
            keep: number of adapters to keep, the best always among them.
            base_name: name of the base that adapters refer to.
        """
        self.folder, self.keep, self.base_name = folder, keep, base_name
        folder.mkdir(parents=True, exist_ok=True)
        self._list = folder / "evaluations.json"
        entries = json.loads(self._list.read_text()) if self._list.exists() else []
        self.evaluations = [Evaluation.model_validate(entry) for entry in entries]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        target = self.folder / folder_of(state.global_step)
        save_adapter(kwargs["model"], target, self.base_name)
        entry = Evaluation(
            step=state.global_step,
            eval_loss=metrics["eval_loss"],
            eval_loss_error=metrics["eval_loss_error"],
            adapter_sha256=sha256_file(target / ADAPTER_WEIGHTS),
            kept=True,
        )
        others = [e for e in self.evaluations if e.step != entry.step]
        kept = best_first([e for e in (*others, entry) if e.kept])
        dropped = {e.step for e in kept[self.keep :]}
        for step in dropped:
            shutil.rmtree(self.folder / folder_of(step), ignore_errors=True)
        self.evaluations = [
            e.model_copy(update={"kept": False}) if e.step in dropped else e
            for e in (*others, entry)
        ]
        entries = [e.model_dump() for e in self.evaluations]
        self._list.write_text(json.dumps(entries, indent=1))

    def leave(self, out: Path) -> Checkpoints:
        """Copy the best adapter to `adapter/` and the others kept to `checkpoints/`."""
        best = best_first(self.evaluations)[0].step
        listed = []
        for entry in self.evaluations:
            folder = folder_of(entry.step)
            path = None
            if entry.step == best:
                path = ADAPTER.name
            elif entry.kept:
                path = f"checkpoints/{folder}"
            if path is not None:
                shutil.copytree(self.folder / folder, out / path)
            listed.append(entry.model_copy(update={"path": path}))
        return Checkpoints(best_step=best, evaluations=listed)


class StopOnTrip(TrainerCallback):
    """Stops training when a rule of `loss_rules` trips.

    Attributes:
        trip: the rule that tripped, None while none has.
    """

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


class LogProgress(TrainerCallback):
    """Logs the progress of training every few seconds, and every validation loss."""

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
