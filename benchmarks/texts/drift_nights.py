"""Nights of production, drawn from prompts that are embedded and scored once.

A year is simulated from these scores: each of its nights is a new draw of prompts. The witness of
the MMD is learned anew each night, which is too slow for years of nights; there the looks of the
null windows are drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tuneline.governance.drift import signals
from tuneline.governance.drift.bets import Counts, Floats, Wealth
from tuneline.governance.drift.reference import Night, Reference, lengths_of
from tuneline.governance.drift.signals import Look

Test = Callable[[Counts], Floats]

TESTS = ("novelty_share", "length_psi", "label_mix", "mmd2")


def simulate(
    reference: Reference,
    usual: Night,
    null_looks: Sequence[dict[str, Look]],
    *,
    years: int,
    window: int,
    rng: np.random.Generator,
    nights: int,
) -> Counts:
    """Return the night of the first alarm of each year, from 0; `nights` if there was none.

    Args:
        usual: prompts without drift; nights are drawn with replacement.
        null_looks: looks of null windows, for the MMD.
    """
    purses = {name: Wealth() for name in TESTS}
    first = np.full(years, nights)
    for night in range(nights):
        seen = _night(reference, usual, null_looks, rng.integers, (years, window))
        alarmed = np.zeros(years, dtype=bool)
        for name, log_e, tally, test in seen:
            purses[name].bet(log_e, tally, test, str(night))
            alarmed |= purses[name].p_value < reference.limit(name)
        first[alarmed & (first == nights)] = night
    return first


def _night(
    reference: Reference,
    usual: Night,
    null_looks: Sequence[dict[str, Look]],
    draw: Callable[..., Counts],
    shape: tuple[int, int],
) -> Iterator[tuple[str, Floats, Counts, Test]]:
    """Yield the bets of a night of each year on the prompts, by the name of the test."""
    drawn = draw(len(usual.prompts), size=shape)
    lengths = lengths_of(usual.prompts)[drawn]
    distances = usual.distances[drawn]
    novelty = reference.novelty
    yield "novelty_share", novelty.log_e(distances), novelty.tally(distances), novelty.test
    long, short = reference.long, reference.short
    log_e = np.hstack([long.log_e(lengths), short.log_e(-lengths)])
    yield "length_psi", log_e, *signals.two_tails([(long, lengths), (short, -lengths)])
    for name in ("mmd2", "label_mix"):
        if name in null_looks[0]:
            looks = [null_looks[int(at)][name] for at in draw(len(null_looks), size=shape[0])]
            tally = np.array([found.tally for found in looks])
            # The nights differ in their sample; the test of the shares is the same for all.
            yield name, np.array([found.log_e for found in looks]), tally, looks[0].test
