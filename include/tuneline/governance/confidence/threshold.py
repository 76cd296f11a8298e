"""The threshold of confidence below which an answer is sent on.

The right answers set it, by the cost that is allowed: with n right answers the k-th least sure one
bounds the share of the next right answers below it by k / (n + 1), whatever their distribution
(split conformal prediction; Vovk et al. 2005). The wrong answers take no part in that choice, so
that the share of them below the threshold is an honest estimate with a Wilson interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from tuneline.artifacts.governance import Share, Threshold
from tuneline.harness.intervals import wilson

# With fewer even all of them caught would leave the share between a half and one.
MIN_WRONG = 5


def find_threshold(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    caught_share: float,
    false_alarm_share: float,
    tokens: int | None = None,
) -> Threshold:
    """Set a threshold, or say why none is set.

    Args:
        confidences: mean log-probability of each answer, in nats.
        right: whether each answer is right.
        caught_share: the share of wrong answers that has to be caught.
        false_alarm_share: the share of right answers that may be sent on.
        tokens: the first tokens that the means are taken over; None for whole answers.
    """
    pairs = list(zip(confidences, right, strict=True))
    good = sorted(value for value, is_right in pairs if is_right)
    bad = [value for value, is_right in pairs if not is_right]
    place = floor(false_alarm_share * (len(good) + 1))
    if lacking := _lacking(len(good), len(bad), false_alarm_share):
        return Threshold(tokens=tokens, reason=lacking)
    value = good[place - 1]
    caught = wilson(sum(one < value for one in bad), len(bad))
    alarms = _false_alarms(place, len(good))
    reason = (
        f"{caught.text()} of {len(bad)} wrong answers are caught for "
        f"{alarms.value:.3f} [{alarms.lower:.3f}, {alarms.upper:.3f}] of the right ones"
    )
    refused = ""
    if caught.value < caught_share:
        refused = f"; {caught_share:g} were to be caught"
    elif caught.lower <= alarms.value:
        refused = "; so few rows can't tell that from chance"
    elif value >= 0:
        refused = "; the model is wholly sure of its least sure answers"
    return Threshold(
        tokens=tokens,
        value=None if refused else value,
        caught=Share(value=caught.value, lower=caught.lower, upper=caught.upper),
        false_alarms=alarms,
        reason=reason + refused,
    )


def _lacking(good: int, bad: int, false_alarm_share: float) -> str:
    """Return what the rows lack for a threshold; empty if they are enough."""
    rows = good + bad
    if rows == 0:
        return "the engine states no log-probabilities"
    if bad == 0:
        return f"none of {rows} answers was wrong"
    if bad < MIN_WRONG:
        return f"only {bad} of {rows} answers were wrong, and {MIN_WRONG} are needed"
    if floor(false_alarm_share * (good + 1)) < 1:
        need = ceil(1 / false_alarm_share) - 1
        return f"only {good} answers were right, and {need} are needed"
    return ""


def _false_alarms(place: int, count: int) -> Share:
    """Return the share of further right answers below the `place`-th least sure of `count`.

    It is Beta distributed, whatever the distribution of the confidences.
    """
    from scipy.stats import beta

    lower, upper = beta.ppf([0.025, 0.975], place, count + 1 - place)
    return Share(value=place / (count + 1), lower=float(lower), upper=float(upper))
