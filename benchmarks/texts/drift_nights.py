"""Nights of production, drawn from prompts that are embedded and scored once.

A year is simulated from these scores: each of its nights is a new draw of prompts. The witness of
the MMD is learned anew each night, which is too slow for years of nights; there the looks of the
null windows are drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.governance.drift import signals
from tuneline.governance.drift.bets import (
    BLOCKS,
    FIRST_NIGHT,
    SINGLE,
    SLOW,
    block_money,
    night_money,
    share_test,
)
from tuneline.governance.drift.reference import Reference, lengths_of
from tuneline.governance.drift.rehearsal import Pool
from tuneline.governance.drift.signals import Look

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]
Test = Callable[[Draws], Floats]

TESTS = ("novelty_share", "length_psi", "label_mix", "mmd2")
# Rates of unsure and of fallback answers in a simulated year.
RATES = {"low_confidence_rate": 0.02, "fallback_rate": 0.01}


class Years:
    """`budget.Wealth` for many years at once."""

    def __init__(self, years: int) -> None:
        self._night = 0
        self._log_wealth: Floats | None = None
        self._least = np.ones(years)
        self._blocks: dict[int, Any] = dict.fromkeys(BLOCKS, 0)

    def p_values(self, log_e: Floats, tally: Draws, test: Test) -> Floats:
        """Take a night and return the p-values so far, shape (years,)."""
        money = night_money(self._night)
        before = np.full_like(log_e, -np.inf) if self._log_wealth is None else self._log_wealth
        self._log_wealth = np.logaddexp(before, np.log(money)) + log_e
        self._night += 1
        waiting = 1 - FIRST_NIGHT - (self._night - 1) * night_money(1)
        wealth = np.exp(np.minimum(self._log_wealth, 700)).mean(axis=1) + max(waiting, 0)
        found = [self._least, 1 / np.maximum(wealth, 1) / SLOW, test(tally) / (SINGLE * money)]
        for size in BLOCKS:
            self._blocks[size] = self._blocks[size] + tally
            if self._night % size == 0:
                found.append(test(self._blocks[size]) / block_money(size))
                self._blocks[size] = 0
        self._least = np.min(found, axis=0)
        return self._least


def simulate(
    reference: Reference,
    usual: Pool,
    null_looks: Sequence[dict[str, Look]],
    *,
    years: int,
    window: int,
    rng: np.random.Generator,
    nights: int,
) -> Draws:
    """Return the night of the first alarm of each year, from 0; `nights` if there was none.

    Args:
        usual: prompts without drift; nights are drawn with replacement.
        null_looks: looks of null windows, for the MMD.
    """
    purses = {name: Years(years) for name in (*TESTS, *RATES)}
    firsts = {n: rng.binomial(signals.FIRST_ANSWERS, rate, years) for n, rate in RATES.items()}
    bets = cache(signals.rate_bets)
    # Answers come in until their rate is known.
    burn_in = -(-signals.FIRST_ANSWERS // window)
    first = np.full(years, nights)
    for night in range(nights):
        seen = list(_night(reference, usual, null_looks, rng.integers, (years, window)))
        if night >= burn_in:
            for name, counts in firsts.items():
                answers = rng.binomial(window, RATES[name], years)
                bet = partial(bets, reference.calibration_error(name))
                seen.append((name, *_rate_night(bet, counts, answers, window)))
        alarmed = np.zeros(years, dtype=bool)
        for name, log_e, tally, test in seen:
            alarmed |= purses[name].p_values(log_e, tally, test) < reference.limit(name)
        first[alarmed & (first == nights)] = night
    return first


def _night(
    reference: Reference,
    usual: Pool,
    null_looks: Sequence[dict[str, Look]],
    draw: Callable[..., Draws],
    shape: tuple[int, int],
) -> Iterator[tuple[str, Floats, Draws, Test]]:
    """Yield the bets of a night of each year on the prompts, by the name of the test."""
    drawn = draw(len(usual.prompts), size=shape)
    lengths = lengths_of(usual.prompts)[drawn]
    distances = usual.night.distances[drawn]
    novelty = reference.novelty
    yield "novelty_share", novelty.log_e(distances), novelty.tally(distances), novelty.test
    long, short = reference.long, reference.short
    log_e = np.hstack([long.log_e(lengths), short.log_e(-lengths)])
    tallies = [long.tally(lengths), short.tally(-lengths)]
    yield "length_psi", log_e, *signals.two_tails((long, short), tallies)
    for name in ("mmd2", "label_mix"):
        if name in null_looks[0]:
            looks = [null_looks[int(at)][name] for at in draw(len(null_looks), size=shape[0])]
            tally = np.array([found.tally for found in looks])
            # The nights differ in their sample; the test of the shares is the same for all.
            yield name, np.array([found.log_e for found in looks]), tally, looks[0].test


def _rate_night(
    rate_bets: Callable[..., tuple[Floats, float]], firsts: Draws, seen: Draws, window: int
) -> tuple[Floats, Draws, Test]:
    """Return the bets of a night of each year on a rate that does not change."""
    looks = [
        rate_bets((int(first), signals.FIRST_ANSWERS), int(count), window)
        for first, count in zip(firsts, seen, strict=True)
    ]
    shares = np.array([share for _, share in looks])

    def test(tally: Draws) -> Floats:
        # The reference rate belongs to a year; years with equal rates are tested together.
        found = np.empty(len(tally))
        for share in np.unique(shares):
            alike = shares == share
            one = np.array([share])
            found[alike] = share_test(tally[alike], one, signals.FIRST_ANSWERS)
        return found

    tally = np.stack([seen, np.full(len(seen), window)], axis=-1)
    return np.array([log_e for log_e, _ in looks]), tally, test
