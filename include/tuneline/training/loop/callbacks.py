"""Events between optimiser steps: evaluate, keep the best adapters, checkpoint, stop, report.

Checkpoints come with validation passes, by the clock, and when the pod is asked to end (SIGTERM).
They are below `<run>/work/train/`. A pointer file names the newest complete one and the hash of
each of its files; it is written last, so a kill at any moment leaves the one before in force.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from tuneline.artifacts.training import ADAPTER, ADAPTER_WEIGHTS, Checkpoints, Evaluation, Trip
from tuneline.config.training import LossRulesConfig
from tuneline.errors import RetryableError
from tuneline.store import CorruptObject, NotThere, Store, sha256_file
from tuneline.terminal import LOG_SECONDS
from tuneline.training.loop.loss_rules import Watch
from tuneline.training.loop.model import save_adapter
from tuneline.training.loop.processes import ProcessGroup


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
    """Saves the adapter of every evaluation, also of those before a resume, and keeps the best."""

    def __init__(self, folder: Path, keep: int, base_name: str) -> None:
        """Keep the best adapters below a folder, `base_name` as their base; those listed count."""
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
        self.evaluations = [e for e in self.evaluations if e.step != entry.step] + [entry]
        kept = best_first([e for e in self.evaluations if e.kept])
        for dropped in kept[self.keep :]:
            shutil.rmtree(self.folder / folder_of(dropped.step), ignore_errors=True)
            place = self.evaluations.index(dropped)
            self.evaluations[place] = dropped.model_copy(update={"kept": False})
        entries = [e.model_dump() for e in self.evaluations]
        self._list.write_text(json.dumps(entries, indent=1))

    def leave(self, out: Path) -> Checkpoints:
        """Copy the best adapter to `adapter/` and the others kept to `checkpoints/`."""
        best = best_first(self.evaluations)[0].step
        listed = []
        for entry in self.evaluations:
            folder = folder_of(entry.step)
            path = ADAPTER.name if entry.step == best else f"checkpoints/{folder}"
            if entry.kept or entry.step == best:
                shutil.copytree(self.folder / folder, out / path)
                listed.append(entry.model_copy(update={"path": path}))
            else:
                listed.append(entry)
        return Checkpoints(best_step=best, evaluations=listed)


class StopOnTrip(TrainerCallback):
    """Stops training when a rule of `loss_rules` trips; `trip` is that rule, None before."""

    def __init__(self, limits: LossRulesConfig, log: Callable[[str], None]) -> None:
        self.watch, self.log = Watch(limits), log
        self.trip: Trip | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self.trip is None and (trip := self.watch.follow(state.log_history)):
            self.trip = trip
            self.log(f"{trip.sentence}: training stops, the best checkpoint is kept")
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


class LiveTracking(Protocol):
    """What `ReportLive` reports to."""

    def begin(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take the log entries before the first step."""

    def log(self, step: int, entry: Mapping[str, Any], device: str) -> None:
        """Take a log entry of a step."""


class ReportLive(TrainerCallback):
    """Reports each log entry to the trackers."""

    def __init__(self, tracking: LiveTracking) -> None:
        self.tracking = tracking

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.tracking.begin(state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if state.is_world_process_zero:
            self.tracking.log(state.global_step, logs, args.device.type)


class LiveCheckpoints:
    """The newest checkpoint of one training, in a store."""

    def __init__(self, store: Store, prefix: str, settings: str) -> None:
        """Open the checkpoints of a training; `settings` is a fingerprint of all that it reads."""
        self.store, self.prefix, self.settings = store, prefix, settings

    @property
    def _pointer(self) -> str:
        return f"{self.prefix}/latest.json"

    def save(self, step: int, folders: Mapping[str, Path]) -> None:
        """Upload folders, by their names in the checkpoint, then drop the checkpoint before."""
        name = f"step-{step:06d}"
        # An interrupted upload may have left a part of it.
        self.store.delete_prefix(f"{self.prefix}/{name}")
        files = {}
        for label, folder in folders.items():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                relative = f"{label}/{path.relative_to(folder).as_posix()}"
                ref = self.store.put_file(f"{self.prefix}/{name}/{relative}", path)
                files[relative] = ref.sha256
        before = self._latest()
        pointer = {"settings": self.settings, "step": step, "name": name, "files": files}
        self.store.flush()
        self.store.put_bytes(self._pointer, json.dumps(pointer).encode())
        self.store.flush()
        if before is not None and before["name"] != name:
            self.store.delete_prefix(f"{self.prefix}/{before['name']}")

    def restore(self, target: Path) -> int | None:
        """Download the newest checkpoint of these settings below a folder, and return its step.

        None if there is none, it is of other settings, or damaged.
        """
        pointer = self._latest()
        if pointer is None or pointer["settings"] != self.settings:
            return None
        try:
            for relative, sha256 in pointer["files"].items():
                key = f"{self.prefix}/{pointer['name']}/{relative}"
                self.store.get_file(key, target / relative, sha256=sha256)
        except (NotThere, CorruptObject):
            return None
        return int(pointer["step"])

    def clear(self) -> None:
        """Delete everything: the training is done."""
        self.store.delete_prefix(self.prefix)

    def _latest(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.store.get_bytes(self._pointer))
        except (NotThere, CorruptObject, json.JSONDecodeError):
            return None
        return found


class ShareRandomState(TrainerCallback):
    """Adds the random states of all processes to rank 0's checkpoint, before it is uploaded."""

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
    """Uploads every checkpoint of the trainer, and with it the adapters kept so far.

    `seconds` is the time that training has waited for uploads.
    """

    def __init__(self, live: LiveCheckpoints, evaluated: Path) -> None:
        self.live, self.evaluated = live, evaluated
        self.seconds = 0.0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        started = time.monotonic()
        local = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.live.save(state.global_step, {"trainer": local, "evaluated": self.evaluated})
        # It is in the store now; the disk must not fill with copies.
        shutil.rmtree(local, ignore_errors=True)
        self.seconds += time.monotonic() - started


class SaveByClock(TrainerCallback):
    """Orders a checkpoint when the last one is older than some minutes."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = minutes * 60, clock
        self._saved = clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock: loading the model is no work that a kill loses."""
        self._saved = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if self._clock() - self._saved >= self._seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock again: any checkpoint counts, from the end of its upload."""
        self._saved = self._clock()


class EndOnSignal(TrainerCallback):
    """Turns SIGTERM into a last checkpoint and an end that is worth another try.

    A context manager, for the main thread alone: all processes of all nodes end with one
    checkpoint. `stopped` is True if training ended so.
    """

    def __init__(self, group: ProcessGroup, log: Callable[[str], None]) -> None:
        self.stopped = False
        self._group, self._log = group, log
        self._signalled = False
        self._before: Any = None

    def __enter__(self) -> EndOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        # Nothing else here: a signal may interrupt any instruction, also of a log line.
        self._signalled = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        [signalled] = self._group.sum([float(self._signalled)])
        # After the last step the rest takes less time than a try that repeats it.
        if signalled and state.global_step < state.max_steps:
            self.stopped = True
            self._log(f"SIGTERM: training saves a checkpoint of step {state.global_step} and ends")
            control.should_save = True
            control.should_training_stop = True

    def check(self, step: int) -> None:
        """Raise the RetryableError of an early end, after training has returned."""
        if self.stopped:
            raise RetryableError(
                f"training was asked to end (SIGTERM) and left a checkpoint of step {step}; the "
                "next try resumes from it"
            )
