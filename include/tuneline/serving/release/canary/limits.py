"""The limits of confidence by which the answers of a candidate are judged beside a release."""

from __future__ import annotations

from typing import Any

from tuneline.serving.release.chain import ChainSettings


def candidate_limits(released: ChainSettings, candidate: ChainSettings) -> dict[str, Any] | None:
    """Return the limits of a candidate's answers, None if those of the release judge both.

    Log-probabilities of two models are no common measure, so each is judged by the threshold that
    was calibrated on its own right answers, if both were calibrated to the same target: then an
    equal share of right answers lies below either, and what one has more of are wrong answers.
    With another target, or without a threshold where the release has one, a candidate would be
    sure by its settings alone.

    Args:
        released: what the version before is served with.
        candidate: what the new release is to be served with.
    """
    theirs, own = released.limits, candidate.limits
    if theirs is None or own is None:
        return None
    assert released.calibration is not None
    assert candidate.calibration is not None
    same_target = released.calibration.false_alarm_share == candidate.calibration.false_alarm_share
    # Whole answers alone, or streams by as many first tokens.
    judges_the_same = theirs.keys() == own.keys() and theirs.get(_WINDOW) == own.get(_WINDOW)
    return own if same_target and judges_the_same else None


_WINDOW = "stream_window_tokens"
