"""When training leaves a checkpoint besides those of validation passes: in time, and at its end.

A pod that is killed loses what it did since its last checkpoint. Validation passes may
lie hours apart, so the clock orders checkpoints too (`training.checkpoint_minutes`). A pod that
is told to go away (SIGTERM: a node is drained, the task is cancelled) leaves one after the step
at hand and ends, within the grace that its cluster gives it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from transformers import TrainerCallback

from tuneline.errors import RetryableError
from tuneline.training.processes.group import ProcessGroup


class SaveInTime(TrainerCallback):
    """Orders a checkpoint when the last one is older than some minutes."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = minutes * 60, clock
        self._saved = clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Loading the model has lost nothing; see `transformers.TrainerCallback`."""
        self._saved = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._clock() - self._saved >= self._seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Any checkpoint counts, and the time from its end, however long it took."""
        self._saved = self._clock()


class EndWhenTold(TrainerCallback):
    """Turns SIGTERM into a last checkpoint and an end that is worth another try.

    One for each process; a node of several that is drained takes all along, with a checkpoint.
    A context manager: the signal is listened to inside. Outside of the main thread, where
    Python hears no signals, it does nothing.

    Attributes:
        stopped: whether training ended because of it.
    """

    def __init__(self, group: ProcessGroup, log: Callable[[str], None]) -> None:
        self.stopped = False
        self._group, self._log = group, log
        self._told = False
        self._before: Any = None

    def __enter__(self) -> EndWhenTold:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: Any) -> None:
        # Nothing else here: a signal comes between any two instructions, of a log line too.
        self._told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        [told] = self._group.sum([float(self._told)])
        # After the last step what is left is shorter than a try that only repeats it.
        if told and state.global_step < state.max_steps:
            self.stopped = True
            self._log(f"told to end (SIGTERM): a checkpoint of step {state.global_step}, then out")
            control.should_save = True
            control.should_training_stop = True

    def check(self, step: int) -> None:
        """Call it when training has returned.

        Raises:
            RetryableError: it was told to end before it was done.
        """
        if self.stopped:
            raise RetryableError(
                f"training was told to end (SIGTERM) and left a checkpoint of step {step}; the "
                "next try resumes from it"
            )
