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

from tuneline.artifacts.training import Trial
from tuneline.errors import UserError
from tuneline.evidence import Measurement, measure
from tuneline.statistics import RowLosses

RULE = (
    "the smallest r whose validation loss is within one standard error (paired by row) of the "
    "lowest"
)


def losses_of(trial: Trial) -> RowLosses:
    """Return the loss of every validation row of a trial."""
    return RowLosses(trial.sums, trial.targets, trial.weights)


class Choice(BaseModel):
    """`sweep.json`: the rank taken, and the table that it was taken from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int
    rule: str
    best_r: int
    excess: float
    excess_error: float
    table: list[dict[str, Any]]

    @property
    def sentence(self) -> str:
        """The choice with the losses behind it, for a person."""
        losses = ", ".join(
            f"r {row['r']}: {row['excluded']}"
            if row["excluded"]
            else f"r {row['r']}: {row['validation_loss']:.4f} ± {row['validation_loss_error']:.4f}"
            for row in self.table
        )
        largest = self.r == max(row["r"] for row in self.table)
        edge = "; it is the largest tried, and short trials favour large ranks" if largest else ""
        return f"r {self.r} chosen by {RULE} ({losses}){edge}"


def choose(trials: Sequence[Trial]) -> Choice:
    """Choose a rank by `RULE`.

    Args:
        trials: the trials of a sweep.

    Returns:
        The choice.

    Raises:
        UserError: if no trial can be chosen.
    """
    losses = {t.r: losses_of(t) for t in trials if t.usable}
    if not losses:
        why = "; ".join(f"r {t.r}: {t.excluded}" for t in trials)
        raise UserError(f"training.sweep_r: no rank could be tried to the end ({why})")
    best_r = min(losses, key=lambda r: (losses[r].mean, r))
    lowest = losses[best_r]
    excess = {
        r: (found.mean - lowest.mean, found.log_ratio_error(lowest)) for r, found in losses.items()
    }
    chosen = min(r for r, (above, error) in excess.items() if above <= error)
    above, error = excess[chosen]
    table = [_row(t, losses.get(t.r), *excess.get(t.r, (None, None))) for t in trials]
    return Choice(r=chosen, rule=RULE, best_r=best_r, excess=above, excess_error=error, table=table)


def _row(
    trial: Trial, losses: RowLosses | None, excess: float | None, error: float | None
) -> dict[str, Any]:
    return {
        "r": trial.r,
        "alpha": trial.alpha,
        "excluded": trial.excluded,
        "validation_loss": losses.mean if losses else None,
        "validation_loss_error": losses.standard_error if losses else None,
        "excess": excess,
        "excess_error": error,
        "loss_before": trial.loss_before if losses else None,
        "trainable_share": trial.trainable_share,
        "steps": trial.steps,
        "seconds": trial.seconds,
    }


def measurements(trials: Sequence[Trial], choice: Choice, accesses: int) -> list[Measurement]:
    """Measure what the choice rests on.

    Args:
        trials: all trials of the sweep.
        choice: the choice among them.
        accesses: entries that the trials left in the ledger of the hold-out.

    Returns:
        The measurements with their limits.
    """
    usable = [(t, losses_of(t)) for t in trials if t.usable]
    best, lowest = next(pair for pair in usable if pair[0].r == choice.best_r)
    return [
        measure("ranks_tried", len(usable), "ranks", "==", len(trials), on_breach="warn"),
        *(
            measure(
                f"validation_loss_r{t.r}",
                round(losses.mean, 6),
                "nats",
                noise=round(losses.standard_error, 6),
            )
            for t, losses in usable
        ),
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
            lowest.mean,
            "nats",
            "<",
            best.loss_before,
            on_breach="warn",
        ),
        measure("holdout_rows_in_sweep", sum(t.holdout_rows for t in trials), "rows", "==", 0),
        measure("holdout_accesses_in_sweep", accesses, "accesses", "==", 0),
        measure("sweep_seconds", round(sum(t.seconds for t in trials), 1), "s"),
    ]
