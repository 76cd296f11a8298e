"""Predict the peak memory of a micro-batch from the measured peaks of smaller ones.

Weights, adapter and optimiser take the same memory whatever the micro-batch; what a step adds
grows with the tokens of the micro-batch. So single steps are taken on growing micro-batches, and
the line through the last two peaks predicts the next one. A micro-batch is tried only when its
prediction fits, and it has at most twice the rows of the one before, which keeps the
extrapolation short. Nothing here depends on an architecture, an arithmetic or an allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

GIB = 1 << 30


@dataclass(frozen=True)
class Peak:
    """A measured peak.

    Attributes:
        tokens: tokens that the model saw at once.
        memory: peak memory, bytes.
    """

    tokens: int
    memory: int


@dataclass(frozen=True)
class Prediction:
    """A predicted peak.

    Attributes:
        fixed: memory that every micro-batch takes, bytes.
        growing: memory that grows with the tokens of the micro-batch, bytes.
    """

    fixed: int
    growing: int

    @property
    def total(self) -> int:
        """The peak, bytes."""
        return self.fixed + self.growing


@dataclass(frozen=True)
class Measured:
    """A micro-batch that was predicted and then measured.

    Attributes:
        rows: rows of the micro-batch.
        predicted: the prediction, made before the measurement.
        memory: measured peak, bytes.
    """

    rows: int
    predicted: Prediction
    memory: int


@dataclass
class Climb:
    """Measures larger and larger micro-batches until the next one would not fit.

    Attributes:
        limit: memory that a step may take, bytes.
        tokens_of: gives the tokens that the model sees for a number of rows.
        measure: takes a step on a number of rows and gives the peak so far, bytes.
        peaks: peaks measured so far; at least two, of less than one row.
    """

    limit: int
    tokens_of: Callable[[int], int]
    measure: Callable[[int], int]
    peaks: list[Peak] = field(default_factory=list)

    def predict(self, rows: int) -> Prediction:
        """Predict the peak of a micro-batch from the last two that were measured."""
        before, last = self.peaks[-2:]
        # Peaks never fall: a process does not give back what its allocator holds.
        slope = (last.memory - before.memory) / max(1, last.tokens - before.tokens)
        fixed = last.memory - slope * last.tokens
        return Prediction(round(fixed), round(slope * self.tokens_of(rows)))

    def up(self, sizes: Sequence[int]) -> Measured:
        """Climb to the largest micro-batch that fits.

        Sizes that are far apart are bridged by powers of two.

        Args:
            sizes: micro-batches to choose among.

        Returns:
            The last of `sizes` that was measured: within the limit, above it where its
            prediction was too low, and the smallest one where none is predicted to fit.
        """
        largest = max(sizes)
        bridges = (1 << power for power in range(largest.bit_length()))
        rungs = sorted({*sizes, *(rows for rows in bridges if rows < largest)})
        at, taken = 0, None
        while ahead := [rows for rows in rungs if rows > at]:
            near = [rows for rows in ahead if rows <= 2 * at] or ahead[:1]
            fitting = [rows for rows in near if self.predict(rows).total <= self.limit]
            if fitting:
                at = max((rows for rows in fitting if rows in sizes), default=max(fitting))
            elif taken is None:
                at = min(sizes)
            else:
                break
            predicted = self.predict(at)
            self.peaks.append(Peak(self.tokens_of(at), self.measure(at)))
            if at in sizes:
                taken = Measured(at, predicted, self.peaks[-1].memory)
                if taken.memory > self.limit:
                    break
        assert taken is not None
        return taken
