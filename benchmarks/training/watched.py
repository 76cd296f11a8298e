"""A training as the step `train` runs it, in a separate run and store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import LoraSettings, Plan
from tuneline.config import TrainingConfig, build_config
from tuneline.models import load_tokenizer
from tuneline.run import Run, StepContext
from tuneline.training.loop.inputs import Inputs, hyperparameters
from tuneline.training.loop.rows import EncodedRow
from tuneline.training.processes.group import ALONE
from tuneline.training.tracking.session import track
from tuneline.training.tracking.tracked_run import describe
from tuneline.training.train import Training


class WatchedTraining:
    """Training with trackers, loss rules, limits, kept adapters and checkpoints.

    Attributes:
        waited: time that training has waited for trackers, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        *,
        base: Path,
        lora: LoraSettings,
        plan: Plan,
        rows: Sequence[EncodedRow],
        validation: Sequence[EncodedRow],
    ) -> None:
        """Create the run.

        Args:
            folder: folder for the store and the step's files.
            config: settings of the training.
            base: directory of the base model.
            lora: settings of the adapter.
            plan: shape of the batches.
            rows: training rows.
            validation: rows whose loss is measured.
        """
        self.waited = 0.0
        # Runs of one benchmark lie side by side: a finished one must not be found again.
        number = len(list(folder.glob("run-*")))
        place = folder / f"run-{number}"
        settings = {"base_model": str(base), "training": config.model_dump(mode="json")}
        run = Run.create(
            (place / "store").as_uri(),
            f"bench-{number}",
            build_config({"data": {"source": "rows.jsonl"}}, settings),
            {},
        )
        self._ctx = StepContext(
            run, "train", place / "out", place / "quarantine", place / "scratch"
        )
        for made in (self._ctx.out, self._ctx.quarantine, self._ctx.scratch):
            made.mkdir(parents=True)
        self._inputs = Inputs(
            base, lora, plan, load_tokenizer(base), list(rows), list(validation), "bench"
        )

    def train(self, clock: Any) -> None:
        """Train to the end.

        Args:
            clock: a callback that comes after all others.

        Raises:
            RuntimeError: if the tracker could not be opened or lost entries, so that its cost
                would not have been measured.
        """
        ctx = self._ctx
        settings = hyperparameters(ctx, self._inputs)
        described = describe(
            ctx.run, key=ctx.run.run_id, settings=settings, dataset_sha256="0" * 64
        )
        trackers = ctx.config.training.tracking
        with track(trackers, described, out=ctx.out, log=_say) as tracking:
            training = Training(ctx, self._inputs, tracking, ALONE)
            training.trainer.add_callback(clock)
            training.loop()
            training.keep()
            self.waited = tracking.seconds
        lost = [run for run in tracking.runs if run.mode == "unreachable" or run.missed]
        if lost or not tracking.runs:
            raise RuntimeError(f"the training was not tracked: {lost}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
