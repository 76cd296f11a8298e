"""Counts of both arms of a canary: what happened to requests of the candidate and of the others."""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.chain.attempt import Attempt, Call

Arm = Literal["candidate", "released"]
# Upper bounds of the latency's buckets, in seconds; the last bucket has none.
BOUNDS = tuple(round(0.01 * 1.25**step, 4) for step in range(44))
ERRORS, LOW, FALLBACKS = "errors", "answers of low confidence", "fallbacks"
_ANSWERED = (AttemptStatus.OK, AttemptStatus.LOW_CONFIDENCE)
# These say nothing about the model.
_OF_THE_CLIENT = (AttemptStatus.CLIENT_ABORTED, AttemptStatus.CLIENT_ERROR)


@dataclass
class ArmCounts:
    """The requests of one arm so far.

    Attributes:
        requests: requests that ended, without those that the client left or got wrong.
    """

    requests: int = 0
    hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys((ERRORS, LOW, FALLBACKS), 0))
    seconds: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


def is_drawn(canary: str, share: float, key: str) -> bool:
    """Return True if the requests of a key go to the candidate; each canary draws anew."""
    digest = hashlib.sha256(f"{canary}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True)
class _Counting:
    """The counts of one canary, and the Unix time of their begin, which tells them from others."""

    arms: dict[Arm, ArmCounts] = field(
        default_factory=lambda: {"candidate": ArmCounts(), "released": ArmCounts()}
    )
    began: float = field(default_factory=time.time)


class CanaryCounts:
    """Counts the requests of both arms of every canary."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counting] = {}

    def keep(self, canaries: Collection[tuple[str, str]]) -> None:
        """Forget all canaries but these: names of models and of their candidates' upstreams."""
        self._counts = {canary: self._counts.get(canary) or _Counting() for canary in canaries}

    def note(
        self, call: Call, attempt: Attempt | None, status: AttemptStatus, share: float
    ) -> None:
        """Count a request that has ended."""
        if status in _OF_THE_CLIENT:
            return
        for (model, candidate), counting in self._counts.items():
            if model == call.model:
                arm: Arm = "candidate" if is_drawn(candidate, share, call.key) else "released"
                _count(counting.arms[arm], call, attempt, status)

    def read(self) -> dict[str, dict[str, object]]:
        """Return all counts as JSON has them, and when they began, by the candidate's upstream."""
        return {
            candidate: {
                "began": counting.began,
                **{arm: vars(counts) for arm, counts in counting.arms.items()},
            }
            for (_, candidate), counting in self._counts.items()
        }


def _count(counts: ArmCounts, call: Call, attempt: Attempt | None, status: AttemptStatus) -> None:
    low = status is AttemptStatus.LOW_CONFIDENCE or (
        attempt is not None and attempt.fallback_reason is AttemptStatus.LOW_CONFIDENCE
    )
    counts.requests += 1
    counts.hits[ERRORS] += attempt is None or status not in _ANSWERED
    counts.hits[LOW] += low
    counts.hits[FALLBACKS] += attempt is not None and attempt.number > 1
    counts.seconds[bisect_left(BOUNDS, time.perf_counter() - call.clock)] += 1
