"""The rule of a canary: withdrawn once it is worse in anything, promoted once it is not in all.

Four shares of the requests are compared: errors, answers of low confidence, answers by a fallback,
and slow answers. With a probability of at most `false_withdrawal` a candidate that is worse in
none of them is ever withdrawn, and with at most `false_promotion` one that is worse by its margin
in any of them is ever promoted, however often is looked. Requests that come in bursts count for as
much as they tell, which needs looks further apart than a burst is long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tuneline.serving.gateway.chain.canary import BOUNDS, ERRORS, FALLBACKS, LOW, ArmCounts
from tuneline.serving.release.canary.evidence import (
    NOTHING,
    Block,
    Dispersion,
    NotWorse,
    Progress,
    Worse,
)

Outcome = Literal["promote", "withdraw"]

# An answer counts as slow if it takes longer than this share of the release's first answers.
_FAST_SHARE = 0.75
SLOW = "slow answers"
# The differences that are not accepted, in shares of the requests.
MARGINS = {ERRORS: 0.02, LOW: 0.05, FALLBACKS: 0.05, SLOW: 0.1}


@dataclass(frozen=True)
class Verdict:
    """What a canary has come to.

    Attributes:
        outcome: None while neither is certain.
        reason: why, one sentence.
    """

    outcome: Outcome | None
    reason: str


@dataclass(frozen=True)
class Share:
    """Evidence about one share of the requests.

    Attributes:
        worse: evidence that the candidate's share is larger.
        not_worse: evidence that it is not larger by the margin.
        dispersion: variance between the looks.
    """

    worse: Progress = NOTHING
    not_worse: Progress = NOTHING
    dispersion: Dispersion = field(default_factory=Dispersion)


@dataclass(frozen=True)
class Known:
    """All that a judge has seen.

    Attributes:
        shares: the evidence about each share, by its name.
        candidate: the candidate's counts at the last look.
        released: those of the release.
        bucket: the bucket of the latency up to which answers are not slow.
    """

    shares: dict[str, Share]
    candidate: ArmCounts = field(default_factory=ArmCounts)
    released: ArmCounts = field(default_factory=ArmCounts)
    bucket: int | None = None

    def fits(self) -> bool:
        """Return False if its latencies were counted in other buckets."""
        buckets = len(BOUNDS) + 1
        return {len(c.seconds) for c in (self.candidate, self.released)} == {buckets}


class _Comparison:
    """One share of the requests, compared between the candidate and the release.

    Args:
        margin: the difference that is not accepted.
        known: the evidence so far.
    """

    def __init__(self, margin: float, known: Share) -> None:
        self.worse = Worse(known.worse)
        self.not_worse = NotWorse(margin, known.not_worse)
        self._dispersion = known.dispersion

    @property
    def known(self) -> Share:
        """The evidence so far."""
        return Share(self.worse.progress, self.not_worse.progress, self._dispersion)

    def add(self, block: Block) -> None:
        """Add a block, weighed by the dispersion of those before it."""
        factor = self._dispersion.factor
        self.worse.add(block, factor)
        self.not_worse.add(block, factor)
        self._dispersion = self._dispersion.with_block(block)


class Judge:
    """Decides on a canary from counts that only grow.

    Args:
        margins: the difference of each share that is not accepted.
        false_withdrawal: probability of withdrawing a candidate that is worse in nothing.
        false_promotion: probability of promoting one that is worse by a margin.
        known: what an earlier judge of the same canary had seen.

    Raises:
        ValueError: if that one compared other shares.
    """

    def __init__(
        self,
        margins: Mapping[str, float] = MARGINS,
        *,
        false_withdrawal: float = 0.05,
        false_promotion: float = 0.05,
        known: Known | None = None,
    ) -> None:
        # Any of the shares may withdraw, so they divide the error among them; all of them have
        # to speak for a promotion, so each has the whole.
        self._withdraw_at = math.log(len(margins) / false_withdrawal)
        self._promote_at = math.log(1 / false_promotion)
        known = known or Known(dict.fromkeys(margins, Share()))
        if known.shares.keys() != margins.keys() or not known.fits():
            raise ValueError("it compared other shares")
        self._shares = {n: _Comparison(m, known.shares[n]) for n, m in margins.items()}
        self._seen = known.candidate, known.released
        self._bucket = known.bucket

    @property
    def known(self) -> Known:
        """All that it has seen, for another judge to go on with."""
        shares = {name: share.known for name, share in self._shares.items()}
        return Known(shares, *self._seen, self._bucket)

    def begin_again(self) -> None:
        """Expect counts from zero, as after a restart of the gateway; what was seen stays seen."""
        self._seen = ArmCounts(), ArmCounts()

    def look(self, candidate: ArmCounts, released: ArmCounts) -> Verdict:
        """Take the counts of both arms so far, and return what they say."""
        new = since(self._seen[0], candidate), since(self._seen[1], released)
        self._seen = candidate, released
        for name, share in self._shares.items():
            block = self._block(name, *new)
            if block is not None:
                share.add(block)
        if self._bucket is None and released.requests:
            self._bucket = _bucket_of(released)
        return self.verdict

    def _block(self, name: str, candidate: ArmCounts, released: ArmCounts) -> Block | None:
        if name != SLOW:
            hits = candidate.hits.get(name, 0), released.hits.get(name, 0)
        elif self._bucket is None:
            # The first answers only say what is slow.
            return None
        else:
            hits = _later(candidate, self._bucket), _later(released, self._bucket)
        return Block(candidate.requests, hits[0], released.requests, hits[1])

    @property
    def verdict(self) -> Verdict:
        """What all that it has seen says."""
        requests = max(s.worse.progress.seen.candidate for s in self._shares.values())
        for name, share in self._shares.items():
            if share.worse.log_e >= self._withdraw_at:
                return Verdict("withdraw", f"more {name} than the release after {requests} answers")
        open_ = [n for n, s in self._shares.items() if s.not_worse.log_e < self._promote_at]
        if not open_:
            return Verdict("promote", f"as good as the release after {requests} answers")
        return Verdict(None, f"{requests} answers do not decide about {', '.join(open_)}")


def since(before: ArmCounts, now: ArmCounts) -> ArmCounts:
    """Return what was added to counts; all of it if the counting has begun again."""
    if now.requests < before.requests:
        return now
    return ArmCounts(
        now.requests - before.requests,
        {name: count - before.hits.get(name, 0) for name, count in now.hits.items()},
        [new - old for new, old in zip(now.seconds, before.seconds, strict=True)],
    )


def _later(counts: ArmCounts, bucket: int) -> int:
    return sum(counts.seconds[bucket + 1 :])


def _bucket_of(released: ArmCounts) -> int:
    """Return the bucket up to which answers are not slow."""
    below = 0
    for bucket, count in enumerate(released.seconds):
        below += count
        if below >= _FAST_SHARE * released.requests:
            return bucket
    return len(BOUNDS) - 1
