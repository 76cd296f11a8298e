"""The clock of a training: runs from the first step after the warm-up to the end."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class StepWindow(TrainerCallback):
    """Takes the time of all steps but the first few, and of what lies between them.

    Attributes:
        seconds: known when training has ended.
    """

    def __init__(self, warm_up: int) -> None:
        """Set the clock.

        Args:
            warm_up: optimiser steps that are not timed.
        """
        self._warm_up = warm_up
        self._started: tuple[float, float] | None = None
        self.seconds = self.cpu_seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is None and state.global_step >= self._warm_up:
            self._started = time.perf_counter(), time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._started is None:
            raise ValueError(
                f"training ended after {state.global_step} steps, before the clock ran"
            )
        began, cpu_began = self._started
        self.seconds = time.perf_counter() - began
        self.cpu_seconds = time.process_time() - cpu_began
