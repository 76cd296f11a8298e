"""E-processes that compare the rates of two groups and may be looked at after every request.

A block holds the new outcomes of both groups since the last look. Its e-value is the likelihood
of the block under a bet that was made before it, over the likelihood under the point of the null
hypothesis that is nearest to the bet (Turner, Ly and Gruenwald, "Generic E-variables for exact
sequential k-sample tests that allow for optional stopping", 2024; for convex nulls Turner and
Gruenwald, "Exact anytime-valid confidence intervals for contingency tables and beyond", 2023).
Under the null hypothesis no strategy of looking makes the product exceed 1/p with a probability
above p (Ville's inequality), whatever the sizes of the blocks.

Requests of one moment are not independent: a queue makes ten answers slow at once. So each
e-value is raised to the power of 1/dispersion, the share of the outcomes that counts, estimated
from the blocks before it as quasi-likelihood does (McCullagh and Nelder, "Generalized Linear
Models", 1989, chapter 9). A power below 1 leaves an e-value one (Jensen's inequality), so the
bound above still holds exactly for independent requests; for others it holds as far as the
estimate does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Observations that an estimate begins with: little, so that the first block decides the first bet.
_PRIOR = 0.18
# Rates of a bet stay off 0 and 1, where a single outcome would end the process.
_EDGE = 1e-6
_BISECTIONS = 60
# The dispersion before the first block, and how many blocks that counts for: without it, two or
# three blocks would decide before anything is known of bursts.
_DISPERSION_BEFORE = 4.0
_BLOCKS_BEFORE = 4
# The largest log e-value of one block, so that no single burst decides.
_MOST_GAIN = 1.0


@dataclass(frozen=True)
class Block:
    """New outcomes of both groups, and how many of them had the property."""

    candidate: int
    candidate_hits: int
    released: int
    released_hits: int

    def __add__(self, other: Block) -> Block:
        """Return both blocks as one."""
        return Block(
            self.candidate + other.candidate,
            self.candidate_hits + other.candidate_hits,
            self.released + other.released,
            self.released_hits + other.released_hits,
        )

    def rates(self) -> tuple[float, float]:
        """Return estimates of both rates, the candidate's first."""
        return (
            (self.candidate_hits + _PRIOR) / (self.candidate + 2 * _PRIOR),
            (self.released_hits + _PRIOR) / (self.released + 2 * _PRIOR),
        )

    def pooled(self) -> float:
        """Return an estimate of one rate of both groups."""
        hits = self.candidate_hits + self.released_hits
        return (hits + _PRIOR) / (self.candidate + self.released + 2 * _PRIOR)

    def log_likelihood(self, candidate: float, released: float) -> float:
        """Return the log-likelihood of its outcomes under two rates, without its constant."""
        return _log(self.candidate_hits, self.candidate, candidate) + _log(
            self.released_hits, self.released, released
        )


@dataclass(frozen=True)
class Dispersion:
    """Variance of the blocks, compared with that of independent outcomes.

    In each block the difference of both rates is compared with its variance, given the hits of both
    together. What makes both slow at once moves neither. The fields are the number of blocks and
    sums of the inverse variances, and of the differences and their squares, each over its variance.
    """

    blocks: int = 0
    weight: float = 0.0
    weighted: float = 0.0
    squares: float = 0.0

    def with_block(self, block: Block) -> Dispersion:
        """Return the dispersion with one more block."""
        total, hits = block.candidate + block.released, block.candidate_hits + block.released_hits
        if not block.candidate or not block.released or hits in (0, total):
            return self
        # The hypergeometric variance of the difference.
        spread = hits / total * (1 - hits / total) * total / (total - 1)
        weight = 1 / (spread * (1 / block.candidate + 1 / block.released))
        difference = block.candidate_hits / block.candidate - block.released_hits / block.released
        return Dispersion(
            self.blocks + 1,
            self.weight + weight,
            self.weighted + weight * difference,
            self.squares + weight * difference**2,
        )

    @property
    def factor(self) -> float:
        """Ratio of both variances, at least 1."""
        if not self.weight:
            return _DISPERSION_BEFORE
        around_mean = self.squares - self.weighted**2 / self.weight
        before = _BLOCKS_BEFORE * _DISPERSION_BEFORE
        return max(1.0, (around_mean + before) / (self.blocks - 1 + _BLOCKS_BEFORE))


@dataclass(frozen=True)
class Progress:
    """How far a process has come: the sum of its blocks, and the logarithm of its e-value."""

    seen: Block = Block(0, 0, 0, 0)
    log_e: float = 0.0


def add_worse(progress: Progress, block: Block, dispersion: float = 1.0) -> Progress:
    """Bet on a block, by what was seen before, that the candidate's rate is above the release's."""
    candidate, released = map(_inside, progress.seen.rates())
    total, gain = block.candidate + block.released, 0.0
    if candidate > released and total:
        mean = (block.candidate * candidate + block.released * released) / total
        bet = block.log_likelihood(candidate, released)
        gain = _gain(bet - block.log_likelihood(mean, mean), dispersion)
    return Progress(progress.seen + block, progress.log_e + gain)


def add_not_worse(
    progress: Progress, block: Block, margin: float, dispersion: float = 1.0
) -> Progress:
    """Bet on a block, by what was seen before, that both rates are the same."""
    rate, gain = _inside(progress.seen.pooled()), 0.0
    if block.candidate and block.released:
        candidate, released = nearest(rate, block.candidate, block.released, margin)
        bet = block.log_likelihood(rate, rate)
        gain = _gain(bet - block.log_likelihood(candidate, released), dispersion)
    return Progress(progress.seen + block, progress.log_e + gain)


def nearest(rate: float, candidate: int, released: int, margin: float) -> tuple[float, float]:
    """Return the rates with a margin between them whose divergence from one rate is least.

    It is Kullback and Leibler's, weighted by the numbers of outcomes.
    """
    low, high = _EDGE, 1 - margin - _EDGE
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # The derivative of the divergence, which is convex.
        slope = candidate * _slope(rate, middle + margin) + released * _slope(rate, middle)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return low + margin, low


def _gain(log_e: float, dispersion: float) -> float:
    return min(log_e / dispersion, _MOST_GAIN)


def _slope(rate: float, at: float) -> float:
    return (at - rate) / (at * (1 - at))


def _log(hits: int, total: int, rate: float) -> float:
    return hits * math.log(rate) + (total - hits) * math.log1p(-rate)


def _inside(rate: float) -> float:
    return min(max(rate, _EDGE), 1 - _EDGE)
