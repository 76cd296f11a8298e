"""Choose a LoRA rank among trials, by their losses on the validation rows.

The one-standard-error rule: the smallest rank whose validation loss lies within one standard
error of the lowest (Breiman, Friedman, Olshen and Stone, "Classification and Regression
Trees", 1984, 3.4.3; Hastie et al., "The Elements of Statistical Learning", 7.10). All trials
are measured on the same rows, so the error is that of the difference row by row; how rows
differ from each other, which hides small differences, is not in it. In few steps a larger
rank gets further at the same learning rate, so a choice at the upper edge says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline.errors import UserError
from tuneline.evidence import Measurement, measure
from tuneline.training.loop.token_loss import RowLosses

RULE = (
    "the smallest r whose validation loss is within one standard error (paired by row) of the "
    "lowest"
)


class Trial(BaseModel):
    """What one rank came to: `trial.json`.

    Attributes:
        r: rank.
        alpha: alpha.
        dataset_sha256: of the run's dataset; a trial on other rows does not count.
        holdout_rows: rows of the hold-out among those the trial could read.
        excluded: why it can't be chosen; None if it can.
        steps: optimiser steps done.
        loss_before: validation loss of the untrained model, nats.
        sums: negative log-likelihood of each validation row's learned tokens, nats.
        targets: learned tokens of each validation row.
        weights: of each validation row.
        trainable_share: trainable over all parameters.
        seconds: that its steps and its measurement took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int
    alpha: int
    dataset_sha256: str
    holdout_rows: int
    excluded: str | None = None
    steps: int = 0
    loss_before: float | None = None
    sums: tuple[float, ...] = ()
    targets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    trainable_share: float = 0.0
    seconds: float = 0.0

    @property
    def losses(self) -> RowLosses:
        """Loss of every validation row."""
        return RowLosses(self.sums, self.targets, self.weights)

    @property
    def usable(self) -> bool:
        """Whether it can be chosen."""
        return self.excluded is None


class Choice(BaseModel):
    """The rank taken, and the table it was taken from: `sweep.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int
    rule: str
    best_r: int
    excess: float
    excess_error: float
    table: list[dict[str, Any]]

    @property
    def told(self) -> str:
        """The choice in a sentence, with the losses behind it."""
        shown = ", ".join(
            f"r {row['r']}: {row['excluded']}"
            if row["excluded"]
            else f"r {row['r']}: {row['validation_loss']:.4f} ± {row['validation_loss_error']:.4f}"
            for row in self.table
        )
        largest = self.r == max(row["r"] for row in self.table)
        edge = "; it is the largest tried, and short trials favour large ranks" if largest else ""
        return f"r {self.r} chosen by {RULE} ({shown}){edge}"


def choose(trials: Sequence[Trial]) -> Choice:
    """Choose a rank by `RULE`.

    Raises:
        UserError: none can be chosen.
    """
    usable = sorted((t for t in trials if t.usable), key=lambda t: t.r)
    if not usable:
        why = "; ".join(f"r {t.r}: {t.excluded}" for t in trials)
        raise UserError(f"training.sweep_r: no rank could be tried to the end ({why})")
    best = min(usable, key=lambda t: (t.losses.mean, t.r))

    def excess(trial: Trial) -> tuple[float, float]:
        losses = trial.losses
        return losses.mean - best.losses.mean, losses.log_ratio_error(best.losses)

    chosen = next(t for t in usable if excess(t)[0] <= excess(t)[1])
    table = [_row(trial, *(excess(trial) if trial.usable else (0.0, 0.0))) for trial in trials]
    above, error = excess(chosen)
    return Choice(
        r=chosen.r, rule=RULE, best_r=best.r, excess=above, excess_error=error, table=table
    )


def _row(trial: Trial, excess: float, error: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "r": trial.r,
        "alpha": trial.alpha,
        "excluded": trial.excluded,
        "validation_loss": None,
        "validation_loss_error": None,
        "excess": None,
        "excess_error": None,
        "loss_before": None,
        "trainable_share": trial.trainable_share,
        "steps": trial.steps,
        "seconds": trial.seconds,
    }
    if not trial.usable:
        return row
    losses = trial.losses
    return row | {
        "validation_loss": losses.mean,
        "validation_loss_error": losses.standard_error,
        "excess": excess,
        "excess_error": error,
        "loss_before": trial.loss_before,
    }


def measurements(trials: Sequence[Trial], choice: Choice, accesses: int) -> list[Measurement]:
    """What the choice rests on.

    Args:
        trials: all of them.
        choice: of `choose`.
        accesses: entries that the trials left in the ledger of the hold-out.
    """
    usable = [t for t in trials if t.usable]
    best = next(t for t in usable if t.r == choice.best_r)
    per_rank = [
        measure(
            f"validation_loss_r{t.r}",
            round(t.losses.mean, 6),
            "nats",
            noise=round(t.losses.standard_error, 6),
        )
        for t in usable
    ]
    return [
        measure("ranks_tried", len(usable), "ranks", "==", len(trials), on_breach="warn"),
        *per_rank,
        measure(
            "validation_loss_above_best",
            choice.excess,
            "nats",
            "<=",
            choice.excess_error,
            noise=choice.excess_error,
        ),
        measure("best_r", choice.best_r, "rank"),
        measure(
            "best_validation_loss_in_sweep",
            best.losses.mean,
            "nats",
            "<",
            best.loss_before,
            on_breach="warn",
        ),
        measure("holdout_rows_in_sweep", sum(t.holdout_rows for t in trials), "rows", "==", 0),
        measure("holdout_accesses_in_sweep", accesses, "accesses", "==", 0),
        measure("sweep_seconds", round(sum(t.seconds for t in trials), 1), "s"),
    ]
