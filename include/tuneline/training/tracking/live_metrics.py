"""The metrics that trackers show, and the callback that sends them as training logs them.

The integrations of TRL and transformers are not used: they log every training argument and the
configuration of the model, absolute paths of the machine among them. The trackers get the same
metrics under the names that those integrations use.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from transformers import TrainerCallback

from tuneline.training.resources.out_of_memory import GIB
from tuneline.training.tracking.tracked_run import Tracker

NAMES = {
    "loss": "train/loss",
    "task_loss": "train/task_loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "eval/loss",
    "eval_loss_error": "eval/loss_error",
}


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an entry of the trainer's log or of `history.jsonl`."""
    if "loss" not in entry and "eval_loss" not in entry:
        return {}
    return {name: float(entry[key]) for key, name in NAMES.items() if key in entry}


def memory_in_use(device: str) -> dict[str, float]:
    """Return the memory of this process, GiB: on the machine, and on the GPU where there is one."""
    found = {"train/memory_gib": psutil.Process().memory_info().rss / GIB}
    if device == "cuda":
        import torch

        found["train/gpu_memory_gib"] = torch.cuda.memory_reserved() / GIB
    return found


def replay(tracker: Tracker, history: Sequence[Mapping[str, Any]]) -> None:
    """Log the part of a training's history that a tracker does not have."""
    trained, evaluated = tracker.steps_logged()
    for entry in history:
        had = trained if "loss" in entry else evaluated
        metrics = metrics_of(entry)
        if metrics and entry["step"] > had:
            tracker.log(entry["step"], metrics)


class LogLive(TrainerCallback):
    """Sends each log entry to the trackers at once.

    A resumed training logs the steps after its checkpoint again. A tracker gets each step once,
    and the steps before the checkpoint if it does not have them.

    Attributes:
        seconds: time that training has waited for it, in seconds.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self.seconds = 0.0
        self._had: dict[int, tuple[int, int]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        started = time.monotonic()
        for number, tracker in enumerate(self.trackers):
            self._had[number] = tracker.steps_logged()
            replay(tracker, state.log_history)
        self.seconds += time.monotonic() - started

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        started = time.monotonic()
        metrics = metrics_of(logs)
        if metrics and state.is_world_process_zero:
            if "loss" in logs:
                metrics |= memory_in_use(args.device.type)
            for number, tracker in enumerate(self.trackers):
                trained, evaluated = self._had.get(number, (-1, -1))
                if state.global_step > (trained if "loss" in logs else evaluated):
                    tracker.log(state.global_step, metrics)
        self.seconds += time.monotonic() - started
