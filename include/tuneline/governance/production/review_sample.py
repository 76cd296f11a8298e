"""Draw rows for review: from strata, by a hash of the request id, with known probabilities."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.governance.production.settings import CurationSettings
from tuneline.governance.production.vocabulary import Stratum
from tuneline.serving.gateway.attempt_status import AttemptStatus

# The gateway samples its log by a hash of the same id: drawn by that one, the two would agree.
_SALT = "review:"


@dataclass(frozen=True)
class Drawn:
    """A row's chance to be reviewed.

    Attributes:
        chosen: True if it is.
        probability: the probability with which a row of its stratum is.
    """

    chosen: bool
    probability: float


def stratum_of(
    *,
    fallback_reason: str | None,
    status: str,
    confidence: float | None,
    novelty: float | None,
    settings: CurationSettings,
) -> Stratum:
    """Return the stratum of a row, the first that fits."""
    if fallback_reason is not None:
        return Stratum.FALLBACK
    doubtful = confidence is not None and confidence < settings.governance.min_confidence
    if doubtful or status == AttemptStatus.LOW_CONFIDENCE:
        return Stratum.LOW_CONFIDENCE
    if novelty is not None and novelty >= settings.curation.novel_share:
        return Stratum.NOVEL
    return Stratum.RANDOM


def draw(ids: Sequence[str], strata: Sequence[Stratum], settings: CurationSettings) -> list[Drawn]:
    """Draw rows for review.

    With a rate every row is drawn with that probability; without one each stratum gives the rows
    with the lowest hashes, as many as its quota.

    Args:
        ids: request ids.
        strata: stratum of each.
        settings: the rate or the quotas.
    """
    rate = settings.sample_rate
    if rate is not None:
        return [Drawn(position(name) < rate, rate) for name in ids]
    members: dict[Stratum, list[int]] = defaultdict(list)
    for number, stratum in enumerate(strata):
        members[stratum].append(number)
    drawn: dict[int, Drawn] = {}
    for stratum, numbers in members.items():
        quota = settings.curation.quota(stratum)
        probability = min(1.0, quota / len(numbers))
        ordered = sorted(numbers, key=lambda number: (position(ids[number]), ids[number]))
        for rank, number in enumerate(ordered):
            drawn[number] = Drawn(rank < quota, probability)
    return [drawn[number] for number in range(len(ids))]


def position(request_id: str) -> float:
    """Return the position of a request in a random order, from 0 up to 1."""
    digest = hashlib.sha256(f"{_SALT}{request_id}".encode()).digest()
    # 48 bits are exact in a float, so that the position stays below 1.
    return int.from_bytes(digest[:6], "big") / 2**48
