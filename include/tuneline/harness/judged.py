"""Answers of a model to rows, judged by the task's metric, alone and against another model's.

What decides is the metric's kind. Shares of right answers keep the intervals made for shares:
Wilson alone, Agresti and Min for a difference, Tango against a margin. Graded scores (chrF,
ROUGE-L) and macro-F1 take the paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneline.harness.answers import Task
from tuneline.statistics import (
    Z_SHOWN,
    Interval,
    NonInferiority,
    Paired,
    bootstrap_limits,
    macro_f1,
    mean_difference,
    mean_interval,
    non_inferiority,
    of_interval,
    paired,
    share,
    sign_test,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Judged:
    """The answers of one model, judged.

    Attributes:
        task: the rule.
        scores: score of each row from 0 to 1.
        wanted: the expected label of each row; empty if the task has no labels.
        named: the label that each answer names, None for none; empty if the task has no labels.
    """

    task: Task
    scores: tuple[float, ...]
    wanted: tuple[str | None, ...] = ()
    named: tuple[str | None, ...] = ()

    @property
    def interval(self) -> Interval:
        """The metric with its 95 % interval."""
        if self.task.metric == "macro_f1":
            return self.macro_f1
        return mean_interval(self.scores) if self.task.graded else share(self.right)

    @property
    def right(self) -> list[bool]:
        """Whether each answer is wholly right."""
        return [score == 1.0 for score in self.scores]

    @property
    def macro_f1(self) -> Interval:
        """The mean of the F1 of every expected label, with its 95 % interval.

        The interval is no narrower than that of the share of right labels: rows that are all right
        have no spread to draw from.
        """
        value = self._f1(_ones(len(self.scores)))
        lower, upper, error = bootstrap_limits(len(self.scores), self._f1)
        accuracy = share(self.right)
        return Interval(
            float(value[0]),
            max(0.0, min(lower, value[0] - (accuracy.value - accuracy.lower))),
            min(1.0, max(upper, value[0] + (accuracy.upper - accuracy.value))),
            max(error, accuracy.error),
        )

    def rows(self, keep: Sequence[bool]) -> Judged:
        """Return the judgement of some rows alone.

        Args:
            keep: whether to keep each row.
        """
        return Judged(
            self.task,
            tuple(s for s, kept in zip(self.scores, keep, strict=True) if kept),
            tuple(w for w, kept in zip(self.wanted, keep, strict=False) if kept),
            tuple(n for n, kept in zip(self.named, keep, strict=False) if kept),
        )

    def _f1(self, weights: Any) -> NDArray[np.float64]:
        return macro_f1(weights, self.wanted, self.named)


def judge(
    task: Task, answers: Sequence[str], expected: Sequence[str], *, anywhere: bool = False
) -> Judged:
    """Judge the answers of a model.

    Args:
        task: the rule.
        answers: an answer for each row.
        expected: the expected answer of each row.
        anywhere: True to find answers in prose too.

    Raises:
        ValueError: if there are not as many of both.
    """
    pairs = list(zip(answers, expected, strict=True))
    scores = tuple(task.score(got, want, anywhere=anywhere) for got, want in pairs)
    if not task.has_labels:
        return Judged(task, scores)
    wanted = tuple(task.label(want) for _, want in pairs)
    named = tuple(task.label(got, anywhere=anywhere) for got, _ in pairs)
    return Judged(task, scores, wanted, named)


def compare(first: Judged, second: Judged) -> Paired:
    """Return how much better the second model is than the first, on the same rows.

    The rows on which only one is right are, for graded scores, those on which it scores higher, and
    the p-value is that of the sign test on them.
    """
    if not first.task.graded:
        found = paired(first.right, second.right)
        if first.task.metric != "macro_f1":
            return found
        return Paired(
            f1_difference(first, second), found.only_first, found.only_second, found.p_value
        )
    pairs = list(zip(first.scores, second.scores, strict=True))
    lower, higher = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    difference = mean_difference(first.scores, second.scores)
    return Paired(difference, lower, higher, sign_test(higher, lower))


def f1_difference(first: Judged, second: Judged) -> Interval:
    """Return the macro-F1 of the second model minus that of the first, with its 95 % interval.

    The interval is no narrower than that of the difference of the shares of right labels.
    """

    def statistic(weights: Any) -> NDArray[np.float64]:
        return second._f1(weights) - first._f1(weights)

    value = float(statistic(_ones(len(first.scores)))[0])
    lower, upper, error = bootstrap_limits(len(first.scores), statistic)
    accuracy = paired(first.right, second.right).difference
    return Interval(
        value,
        max(-1.0, min(lower, value - (accuracy.value - accuracy.lower))),
        min(1.0, max(upper, value + (accuracy.upper - accuracy.value))),
        max(error, accuracy.error),
    )


def not_worse(old: Judged, new: Judged, margin: float) -> NonInferiority:
    """Compare a new model with an old one on the same rows, against a margin.

    Args:
        old: the answers of the old model.
        new: those of the new model.
        margin: how much lower the metric of the new model may be.
    """
    if not old.task.graded and old.task.metric != "macro_f1":
        return non_inferiority(old.right, new.right, margin)
    found, rows = compare(old, new), len(old.scores)
    if old.task.graded:
        squares = [(b - a) ** 2 for a, b in zip(old.scores, new.scores, strict=True)]
        spread = sum(squares) / rows
    else:
        spread = found.difference.error**2 * rows + found.difference.value**2
    return of_interval(found, rows, margin, spread)


def rows_needed(difference: Interval, rows: int, limit: float) -> int | None:
    """Return the rows that show a difference above a limit with a probability of 80 %.

    The models are taken to go on to differ as they did. The planned sample has an error that
    shrinks with the root of its size.

    Args:
        difference: the difference that was measured.
        rows: number of rows that it was measured on.
        limit: the limit that it must exceed.

    Returns:
        The number of rows, at least one more than there are; None if the difference is not above
        the limit, so that no number of rows is expected to show it.
    """
    distance = difference.value - limit
    if distance <= 0:
        return None
    variance = difference.error**2 * rows
    return max(rows + 1, math.ceil(variance * (Z_SHOWN / distance) ** 2))


def smallest_shown(difference: Interval, limit: float) -> float:
    """Return the smallest difference that such rows show above a limit, with a chance of 80 %."""
    return limit + Z_SHOWN * difference.error


def _ones(rows: int) -> Any:
    import numpy as np

    return np.ones((1, rows))
