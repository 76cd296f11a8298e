"""The seven signals of drift. Each looks at one night: its value, its bets and its drivers.

Log e-values have a mean of at most 0 in the e-sense (E[exp] <= 1) while nothing has drifted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.artifacts.request_log import REPLACED, Reason
from tuneline.governance.drift.bets import (
    YEAR,
    Counts,
    Floats,
    Tail,
    calibrate,
    rate_log_e,
    share_test,
)
from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Night, Reference, calibration_error, lengths_of
from tuneline.statistics import share_of

Events = dict[str, list[tuple[Prompt, str]]]
# Events and answers by kind.
Known = dict[str, tuple[int, int]]

# Novel is what is farther from training than 95 % of it.
NOVEL = 0.05
# Prompts that a report names for a signal.
MOST_DRIVERS = 10
PSI_BINS = 10
# More labels than this are free text.
MOST_LABELS = 500
OTHER_LABEL = "another label"
# A rate of the answers may grow by a fifth and half a point. A label may gain three points: classes
# are balanced for training, and predictions are not labels.
TOLERANCES = {
    "label_mix": (1.0, 0.03),
    **dict.fromkeys(("low_confidence_rate", "fallback_rate", "rejection_rates"), (1.2, 0.005)),
}
RATE_FACTORS = (1.25, 1.5, 2.0, 4.0, 10.0)
# Answers after which the first nights are the reference of a rate.
FIRST_ANSWERS = 1000
# Until then a tenth of the requests may be rejected for one reason, as if 1,000 had shown it.
FIRST_REJECTED = 100, 1000
# Requests that another row replaces are no loss.
REJECTIONS = tuple(reason for reason in Reason if reason not in REPLACED)


@dataclass(frozen=True)
class Driver:
    """A prompt that drives a signal."""

    day: str
    line: int  # in the log
    why: str
    text: str | None


@dataclass(frozen=True)
class Look:
    """What a signal saw in one night."""

    value: float
    log_e: Floats  # by alternative
    tally: Counts  # counts that can be added over nights
    test: Callable[[Counts], Floats]  # from a tally, shape (..., counts), to its p-value
    drivers: list[Driver]  # the strongest first


def novelty_share(reference: Reference, night: Night) -> Look | None:
    """Look for new topics: prompts far from their nearest training prompts."""
    if not night.with_text:
        return None
    scores = night.distances
    p = reference.novelty.p_values(scores)
    drivers = _strongest(night, scores, p <= NOVEL, lambda at: f"p = {p[at]:.4f}")
    tail = reference.novelty
    share = float((p <= NOVEL).mean())
    return Look(share, tail.log_e(scores), tail.tally(scores), tail.test, drivers)


def mmd2(reference: Reference, night: Night) -> Look | None:
    """Look for any shift of the distribution, by the witness of the maximum mean discrepancy.

    One half of the night learns the witness function (Gretton et al., JMLR 2012), the other half
    bets on it, and the other way round (after Shekhar and Ramdas, IEEE Transactions on Information
    Theory 2024). Half of the training prompts takes part in the witness, the other half calibrates
    it. So no permutations are needed, whatever the level is.
    """
    rows = night.matrix
    if rows.shape[0] < 20:
        return None
    middle = reference.train.shape[0] // 2
    known, unseen = reference.train[:middle], reference.train[middle:]
    usual = _mean(known)
    # The witness is another one each night, so the error of its bounds is shared out as well.
    error = calibration_error(reference.alarms, "mmd2") / (2 * YEAR)
    halves = np.arange(0, rows.shape[0], 2), np.arange(1, rows.shape[0], 2)
    bets, scores = [], np.empty(rows.shape[0])
    for learn, bet in (halves, halves[::-1]):
        witness = _mean(rows[learn]) - usual
        scores[bet] = rows[bet] @ witness
        tail = calibrate(unseen @ witness, reference.validation @ witness, error)
        bets.append((tail, scores[bet]))
    # The mean of two e-values is an e-value.
    log_e = np.logaddexp(*(tail.log_e(own) for tail, own in bets)) - np.log(2)
    strong = scores >= np.quantile(scores, 0.9)
    drivers = _strongest(night, scores, strong, lambda at: f"{scores[at]:.3f}")
    return Look(_mmd2(known, rows), log_e, *two_tails(bets), drivers)


def length_psi(reference: Reference, night: Night) -> Look | None:
    """Look for another form: prompts longer or shorter than those of training."""
    if not night.with_text:
        return None
    lengths = lengths_of(night.with_text)
    tails = ((reference.long, lengths), (reference.short, -lengths))
    log_e = np.concatenate([tail.log_e(scores) for tail, scores in tails])
    p = np.min([tail.p_values(scores) for tail, scores in tails], axis=0)
    drivers = _strongest(night, -p, p <= NOVEL, lambda at: f"{lengths[at]:.0f} characters")
    return Look(_psi(reference.lengths, lengths), log_e, *two_tails(tails), drivers)


def counted(reference: Reference, night: Night, name: str, first: Known) -> Look | None:
    """Look for kinds of answers that grow: labels, unsure, fallback and rejected ones.

    Training states the labels. Of the others `first` has the events and answers of the first nights
    by kind, which are the reference, and takes those of this night while they are few.
    """
    answers, events = _events(reference, night, name)
    known = _known(reference, name, events, answers, first) if answers else None
    if known is None:
        return None
    error = calibration_error(reference.alarms, name) / len(events)
    factor, points = TOLERANCES[name]
    won, shares, gains = [], [], {}
    for kind, (count, total) in known.items():
        there, rate = len(events[kind]), count / total
        gains[kind] = there / answers - rate
        more = (factor - 1) * rate + points
        bound = min(0.95, share_of(count, total, error).upper + more)
        supposed = [min(bound * times, (1 + bound) / 2) for times in RATE_FACTORS]
        won.append(rate_log_e(there, answers, bound, supposed))
        shares.append(min(0.95, rate + more))
    grown = max(gains, key=lambda kind: gains[kind])
    tally = np.array([*map(len, events.values()), answers])
    rows = min(total for _, total in known.values())
    test = partial(share_test, shares=np.array(shares), rows=rows)
    value = float(tally[:-1].sum() / answers)
    if name == "label_mix":
        value = sum(gain for gain in gains.values() if gain > 0)
    return Look(value, np.concatenate(won), tally, test, _drivers(night, events[grown]))


def _known(
    reference: Reference, name: str, events: Events, answers: int, first: Known
) -> Known | None:
    """Return the events and answers of the reference by kind; None while they are still counted."""
    if name == "label_mix":
        rows, labels = sum(reference.labels.values()), reference.labels
        few = 2 <= len(labels) <= MOST_LABELS
        return {kind: (labels.get(kind, 0), rows) for kind in events} if few else None
    known = {kind: first.get(kind, (0, 0)) for kind in events}
    if min(total for _, total in known.values()) >= FIRST_ANSWERS:
        return known
    for kind, (count, total) in known.items():
        first[kind] = count + len(events[kind]), total + answers
    return dict.fromkeys(events, FIRST_REJECTED) if name == "rejection_rates" else None


def _events(reference: Reference, night: Night, name: str) -> tuple[int, Events]:
    """Return the number of answers that could be an event, and the events by kind."""
    kinds, asked = [name], list(night.prompts)
    if name == "label_mix":
        kinds, asked = [*reference.labels, OTHER_LABEL], [p for p in asked if p.label is not None]
        labels = [p.label if p.label in reference.labels else OTHER_LABEL for p in asked]
        seen = [(p, label, f"label {p.label}") for p, label in zip(asked, labels, strict=True)]
    elif name == "rejection_rates":
        kinds = [f"{name}:{reason}" for reason in REJECTIONS]
        reasons = [(p, p.rejected or (None if p.text else Reason.NO_TEXT)) for p in asked]
        seen = [(p, f"{name}:{why}", f"rejected: {why}") for p, why in reasons if why]
    elif name == "fallback_rate":
        asked = [p for p in asked if p.fallback is not None]
        seen = [(p, name, "another model answered") for p in asked if p.fallback]
    else:
        asked = [p for p in asked if p.logprob is not None]
        asked.sort(key=lambda p: p.logprob or 0.0)
        unsure = [p for p in asked if (p.logprob or 0.0) < reference.min_confidence]
        seen = [(p, name, f"mean log-probability {p.logprob:.2f}") for p in unsure]
    events: Events = {kind: [] for kind in kinds}
    for prompt, kind, why in seen:
        events[str(kind)].append((prompt, why))
    return len(asked), events


def two_tails(tails: Sequence[tuple[Tail, Floats]]) -> tuple[Counts, Callable[[Counts], Floats]]:
    """Return the tally of two tails with their scores, and its test."""
    (upper, _), (lower, _) = tails
    middle = len(upper.thresholds) + 1

    def test(tally: Counts) -> Floats:
        first, second = upper.test(tally[..., :middle]), lower.test(tally[..., middle:])
        return np.asarray(np.minimum(1.0, 2 * np.minimum(first, second)))

    return np.concatenate([tail.tally(scores) for tail, scores in tails], axis=-1), test


def _strongest(
    night: Night, scores: Floats, counted: NDArray[np.bool_], why: Callable[[int], str]
) -> list[Driver]:
    order = [int(at) for at in np.argsort(-scores, kind="stable") if counted[at]]
    return _drivers(night, [(night.with_text[at], why(at)) for at in order[:MOST_DRIVERS]])


def _drivers(night: Night, events: Sequence[tuple[Prompt, str]]) -> list[Driver]:
    return [Driver(night.day, p.line, why, p.text) for p, why in events[:MOST_DRIVERS]]


def _mean(rows: Any) -> Floats:
    return np.asarray(rows.mean(axis=0)).ravel()


def _mmd2(reference: Any, window: Any) -> float:
    """Return the unbiased squared MMD with the linear kernel of rows of unit length."""
    x, y = _mean(reference), _mean(window)
    n, m = reference.shape[0], window.shape[0]
    within_x = (n * float(x @ x) - 1) / (n - 1)
    within_y = (m * float(y @ y) - 1) / (m - 1)
    return within_x + within_y - 2 * float(x @ y)


def _psi(reference: Floats, window: Floats) -> float:
    """Return the population stability index over the reference's quantile bins."""
    edges = np.quantile(reference, np.linspace(0, 1, PSI_BINS + 1))[1:-1]
    expected, actual = _shares(reference, edges), _shares(window, edges)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _shares(values: Floats, edges: Floats) -> Floats:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    # Half a row in each bin keeps the logarithm finite where a bin is empty.
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))


TEXT_SIGNALS = {"novelty_share": novelty_share, "length_psi": length_psi, "mmd2": mmd2}
