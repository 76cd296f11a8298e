"""The wealth of a signal's bets over a year of nights, and the false alarms that it may raise.

Each night gives an e-value for every alternative of a signal: a number that is not negative and
has an expectation of at most 1 while nothing has drifted. A product of e-values is the wealth of
a gambler who bets against "nothing has drifted"; by Ville's inequality it ever reaches 1/alpha with
a probability of at most alpha, however often one looks.

A gambler who starts on the first night has lost nearly everything by the time that a drift begins.
So a share of the money is kept for every night of the year, and starts to bet on that night (the
e-detector of Shin, Ramdas and Rinaldo, New England Journal of Statistics in Data Science, 2024,
with a budget in place of a run length). The sum is an e-process over the whole year.

A quarter of a signal's budget is for this slow evidence. A half is for single nights: the same
shares of it, spent on an exact test each night. The rest is for tests of whole weeks and of four
weeks together. A union bound over these looks holds although all of them have the same reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Nights for which a budget of false alarms lasts. Then the bets start again with a new one.
YEAR = 365
# Money for the first night. A mismatch of training and production shows as soon as a model serves.
FIRST_NIGHT = 0.25
# Nights that are tested together, and the part of the budget for these tests.
BLOCKS = {7: 0.125, 28: 0.125}
SLOW, SINGLE = 0.25, 0.5


def night_money(night: int) -> float:
    """Return the share of a year's money that starts to bet on a night, counted from 0."""
    return FIRST_NIGHT if night == 0 else (1 - FIRST_NIGHT) / (YEAR - 1)


def block_money(nights: int) -> float:
    """Return the part of the budget for one test of a block of nights."""
    return BLOCKS[nights] / (YEAR // nights)


@dataclass
class Wealth:
    """What the bets of one signal have come to.

    Attributes:
        nights: nights of this year that were bet on.
        p_value: anytime-valid p-value, the smallest so far this year.
        log_wealth: logarithm of the running wealth by alternative, shape (alternatives,).
        rise: largest sum of log e-values up to tonight by alternative, over all first nights.
        began: the first night of that sum by alternative, the estimate of the change point.
        recent: tallies of the last nights, the latest last.
    """

    nights: int = 0
    p_value: float = 1.0
    log_wealth: Floats = field(default_factory=lambda: np.empty(0))
    rise: Floats = field(default_factory=lambda: np.empty(0))
    began: list[str] = field(default_factory=list)
    recent: list[Counts] = field(default_factory=list)

    def bet(self, log_e: Floats, tally: Counts, test: Callable[[Counts], Floats], day: str) -> None:
        """Take a night.

        Args:
            log_e: its log e-values by alternative, shape (alternatives,).
            tally: its counts, which can be added over nights.
            test: function from a tally to its p-value.
            day: its date.
        """
        if self.nights == YEAR or len(self.log_wealth) != len(log_e):
            # A new year, or another reference: what was bet on before is no more.
            self.nights, self.p_value = 0, 1.0
            self.log_wealth = np.full(len(log_e), -np.inf)
            self.rise, self.began = np.zeros(len(log_e)), [day] * len(log_e)
            self.recent = []
        money = night_money(self.nights)
        self.log_wealth = np.logaddexp(self.log_wealth, math.log(money)) + log_e
        self.nights += 1
        slow = math.exp(-max(0.0, self._log_total()))
        single = float(test(tally)) / (SINGLE * money)
        if self.recent and len(self.recent[-1]) != len(tally):
            self.recent = []
        self.recent = [*self.recent, tally][-max(BLOCKS) :]
        blocks = [
            float(test(np.sum(self.recent[-size:], axis=0))) / block_money(size)
            for size in BLOCKS
            if self.nights % size == 0 and len(self.recent) >= size
        ]
        self.p_value = min(self.p_value, slow / SLOW, single, *blocks)
        self.began = [
            day if rise <= 0 else was for rise, was in zip(self.rise, self.began, strict=True)
        ]
        self.rise = np.maximum(self.rise, 0) + log_e

    def _log_total(self) -> float:
        """Return the logarithm of all money: what was bet, and what waits for its night."""
        spent = FIRST_NIGHT + (self.nights - 1) * night_money(1)
        bet = np.logaddexp.reduce(self.log_wealth) - math.log(len(self.log_wealth))
        return float(np.logaddexp(bet, math.log(max(1 - spent, 1e-300))))

    @property
    def since(self) -> str | None:
        """The night on which the strongest alternative began to win, None before the first bet."""
        return self.began[int(np.argmax(self.rise))] if self.began else None

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain types."""
        # An empty purse (-inf) has no form in JSON; -1e9 is as empty.
        return {
            "nights": self.nights,
            "p_value": self.p_value,
            "log_wealth": [round(float(max(v, -1e9)), 6) for v in self.log_wealth],
            "rise": [round(float(v), 6) for v in self.rise],
            "began": self.began,
            "recent": [[int(count) for count in tally] for tally in self.recent],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Wealth:
        """Return the wealth of `as_dict`."""
        return cls(
            int(document["nights"]),
            float(document["p_value"]),
            np.array(document["log_wealth"], dtype=float),
            np.array(document["rise"], dtype=float),
            [str(day) for day in document["began"]],
            [np.array(tally, dtype=np.int64) for tally in document["recent"]],
        )
