"""The clock of a training: runs from the first step after the warm-up to the end."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class StepWindow(TrainerCallback):
    """Takes the time of all steps but the first few, and of what lies between them.

    Attributes:
        seconds: without validation passes; known when training has ended.
        cpu_seconds: of all threads, validation passes included.
        in_steps: the part of `seconds` that lies within steps; the rest is data, logs, trackers
            and checkpoints.
    """

    def __init__(self, warm_up: int) -> None:
        """Set the clock.

        Args:
            warm_up: optimiser steps that are not timed.
        """
        self._warm_up = warm_up
        self._started: float | None = None
        self._cpu_started = self._step_started = self._evaluating = 0.0
        self.seconds = self.cpu_seconds = self.in_steps = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is None and state.global_step >= self._warm_up:
            self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._step_started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is not None:
            self.in_steps += time.perf_counter() - self._step_started

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is not None:
            self._evaluating += float(metrics["eval_seconds"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is None:
            raise ValueError(
                f"training ended after {state.global_step} steps, before the clock ran"
            )
        self.cpu_seconds = time.process_time() - self._cpu_started
        self.seconds = time.perf_counter() - self._started - self._evaluating
