"""The rule of a canary: withdrawn once it is worse in anything, promoted once it is not in all.

Four shares of the requests are compared: errors, answers of low confidence, answers by a fallback,
and slow answers. With a probability of at most `false_withdrawal` a candidate that is worse in
none of them is ever withdrawn, and with at most `false_promotion` one that is worse by its margin
in any of them is ever promoted, however often is looked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tuneline.serving.gateway.tally import BOUNDS, ERRORS, FALLBACKS, LOW, Counts
from tuneline.serving.release.canary.evidence import Block, NotWorse, Worse

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


class Judge:
    """Decides on a canary from counts that only grow.

    Args:
        margins: the difference of each share that is not accepted.
        false_withdrawal: probability of withdrawing a candidate that is worse in nothing.
        false_promotion: probability of promoting one that is worse by a margin.
    """

    def __init__(
        self,
        margins: Mapping[str, float] = MARGINS,
        *,
        false_withdrawal: float = 0.05,
        false_promotion: float = 0.05,
    ) -> None:
        # Any of the shares may withdraw, so they divide the error among them; all of them have
        # to speak for a promotion, so each has the whole.
        self._withdraw_at = math.log(len(margins) / false_withdrawal)
        self._promote_at = math.log(1 / false_promotion)
        self._worse = {name: Worse() for name in margins}
        self._not_worse = {name: NotWorse(margin) for name, margin in margins.items()}
        self._seen = (Counts(), Counts())
        self._bucket: int | None = None

    def look(self, candidate: Counts, released: Counts) -> Verdict:
        """Take the counts of both arms so far, and return what they say."""
        new = since(self._seen[0], candidate), since(self._seen[1], released)
        self._seen = candidate, released
        for name in self._worse:
            block = self._block(name, *new)
            if block is not None:
                self._worse[name].add(block)
                self._not_worse[name].add(block)
        if self._bucket is None and released.requests:
            self._bucket = _bucket_of(released)
        return self._verdict()

    def _block(self, name: str, candidate: Counts, released: Counts) -> Block | None:
        if name != SLOW:
            hits = candidate.hits.get(name, 0), released.hits.get(name, 0)
        elif self._bucket is None:
            # The first answers only say what is slow.
            return None
        else:
            hits = _later(candidate, self._bucket), _later(released, self._bucket)
        return Block(candidate.requests, hits[0], released.requests, hits[1])

    def _verdict(self) -> Verdict:
        requests = self._seen[0].requests
        for name, worse in self._worse.items():
            if worse.log_e >= self._withdraw_at:
                return Verdict("withdraw", f"more {name} than the release after {requests} answers")
        open_ = [n for n, e in self._not_worse.items() if e.log_e < self._promote_at]
        if not open_:
            return Verdict("promote", f"as good as the release after {requests} answers")
        return Verdict(None, f"{requests} answers do not decide about {', '.join(open_)}")


def since(before: Counts, now: Counts) -> Counts:
    """Return what was added to counts; all of it if the counting has begun again."""
    if now.requests < before.requests:
        return now
    return Counts(
        now.requests - before.requests,
        {name: count - before.hits.get(name, 0) for name, count in now.hits.items()},
        [new - old for new, old in zip(now.seconds, before.seconds, strict=True)],
    )


def _later(counts: Counts, bucket: int) -> int:
    return sum(counts.seconds[bucket + 1 :])


def _bucket_of(released: Counts) -> int:
    """Return the bucket up to which answers are not slow."""
    below = 0
    for bucket, count in enumerate(released.seconds):
        below += count
        if below >= _FAST_SHARE * released.requests:
            return bucket
    return len(BOUNDS) - 1
