"""The seven signals of drift. Each looks at one night: its value, its bets and its drivers.

Log e-values have a mean of at most 0 in the e-sense (E[exp] <= 1) while nothing has drifted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.governance.drift.bets import YEAR, Tail, calibrate, rate_bound, rate_log_e, share_test
from tuneline.governance.drift.prompts import Prompt
from tuneline.governance.drift.reference import Night, Reference, lengths_of
from tuneline.governance.production.requests import REPLACED, Reason

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Novel is what is farther from training than 95 % of it.
NOVEL = 0.05
# Prompts that a report names for a signal.
MOST_DRIVERS = 10
PSI_BINS = 10
# A label may gain this share of the answers before it counts as drift: classes are balanced for
# training, and predictions are not labels.
LABEL_TOLERANCE = 0.03
LABEL_RISES = (0.05, 0.1, 0.2, 0.4)
# More labels than this are free text.
MOST_LABELS = 500
OTHER_LABEL = "another label"
# A rate of the answers may grow by a fifth and half a point.
RATE_TOLERANCE = 1.2, 0.005
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
    drivers = _strongest(night, night.with_text, scores, p <= NOVEL, lambda at: f"p = {p[at]:.4f}")
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
    error = reference.calibration_error("mmd2") / (2 * YEAR)
    halves = np.arange(0, rows.shape[0], 2), np.arange(1, rows.shape[0], 2)
    bets, tails, tallies, scores = [], [], [], np.empty(rows.shape[0])
    for learn, bet in (halves, halves[::-1]):
        witness = _mean(rows[learn]) - usual
        tail = calibrate(unseen @ witness, reference.validation @ witness, error)
        scores[bet] = rows[bet] @ witness
        bets.append(tail.log_e(scores[bet]))
        tails.append(tail)
        tallies.append(tail.tally(scores[bet]))
    # The mean of two e-values is an e-value.
    log_e = np.logaddexp(bets[0], bets[1]) - np.log(2)
    strong = scores >= np.quantile(scores, 0.9)
    drivers = _strongest(night, night.with_text, scores, strong, lambda at: f"{scores[at]:.3f}")
    tally, test = two_tails(tails, tallies)
    return Look(_mmd2(known, rows), log_e, tally, test, drivers)


def length_psi(reference: Reference, night: Night) -> Look | None:
    """Look for another form: prompts longer or shorter than those of training."""
    if not night.with_text:
        return None
    lengths = lengths_of(night.with_text)
    tails = ((reference.long, lengths), (reference.short, -lengths))
    log_e = np.concatenate([tail.log_e(scores) for tail, scores in tails])
    p = np.min([tail.p_values(scores) for tail, scores in tails], axis=0)
    drivers = _strongest(
        night, night.with_text, -p, p <= NOVEL, lambda at: f"{lengths[at]:.0f} characters"
    )
    both = [tail for tail, _ in tails]
    tally, test = two_tails(both, [tail.tally(scores) for tail, scores in tails])
    return Look(_psi(reference.lengths, lengths), log_e, tally, test, drivers)


def label_mix(reference: Reference, night: Night) -> Look | None:
    """Look for labels that the model answers with more often than training had them."""
    labelled = [prompt for prompt in night.prompts if prompt.label is not None]
    if not labelled or not 2 <= len(reference.labels) <= MOST_LABELS:
        return None
    names = [*reference.labels, OTHER_LABEL]
    error = reference.calibration_error("label_mix") / len(names)
    rows, total = sum(reference.labels.values()), len(labelled)
    seen = Counter(p.label if p.label in reference.labels else OTHER_LABEL for p in labelled)
    log_e, shares, gains = [], [], {}
    for name in names:
        count = reference.labels.get(name, 0)
        bound = min(rate_bound(count, rows, error) + LABEL_TOLERANCE, 0.95)
        rates = [min(bound + rise, (1 + bound) / 2) for rise in LABEL_RISES]
        log_e.append(rate_log_e(seen[name], total, bound, rates))
        shares.append(min(count / rows + LABEL_TOLERANCE, 1.0))
        gains[name] = seen[name] / total - count / rows
    most = max(gains, key=lambda name: gains[name])
    drivers = [
        Driver(night.day, p.line, f"label {p.label}", p.text)
        for p in labelled
        if p.label == most or (most == OTHER_LABEL and p.label not in reference.labels)
    ]
    distance = sum(gain for gain in gains.values() if gain > 0)
    tally = np.array([*(seen[name] for name in names), total])
    test = partial(share_test, shares=np.array(shares), rows=rows)
    return Look(distance, np.concatenate(log_e), tally, test, drivers[:MOST_DRIVERS])


def rates(
    reference: Reference, night: Night, name: str, first: dict[str, tuple[int, int]]
) -> Look | None:
    """Look for rates of events that grow: unsure, fallback and rejected answers.

    Training can't state them. `first` has the events and answers of the first nights by rate, which
    are the reference, and takes those of this night while they are few; until then rejections are
    compared with `FIRST_REJECTED`, and the other rates not at all (None).
    """
    answers, events = _events(reference, night, name)
    if not answers:
        return None
    known = {key: first.get(key, (0, 0)) for key in events}
    if min(total for _, total in known.values()) < FIRST_ANSWERS:
        for key, (count, total) in known.items():
            first[key] = count + len(events[key]), total + answers
        if name != "rejection_rates":
            return None
        known = dict.fromkeys(events, FIRST_REJECTED)
    counts = {key: len(found) for key, found in events.items()}
    error = reference.calibration_error(name) / len(events)
    bets = [rate_bets(error, known[key], counts[key], answers) for key in events]
    test = partial(
        share_test,
        shares=np.array([share for _, share in bets]),
        rows=min(total for _, total in known.values()),
    )
    grown = max(events, key=lambda key: counts[key] / answers - known[key][0] / known[key][1])
    drivers = [Driver(night.day, p.line, why, p.text) for p, why in events[grown][:MOST_DRIVERS]]
    tally = np.array([*counts.values(), answers])
    share = sum(counts.values()) / answers
    return Look(share, np.concatenate([log_e for log_e, _ in bets]), tally, test, drivers)


def rate_bets(
    error: float, first: tuple[int, int], events: int, answers: int
) -> tuple[Floats, float]:
    """Return the log e-values of a night, and the largest share of events that is not drift.

    `error` is the probability that the bound of the first nights' rate is too low.
    """
    factor, points = RATE_TOLERANCE
    share = min(0.95, factor * first[0] / first[1] + points)
    bound = min(0.95, max(rate_bound(*first, error), share))
    supposed = [min(bound * times, (1 + bound) / 2) for times in RATE_FACTORS]
    return rate_log_e(events, answers, bound, supposed), share


def _events(
    reference: Reference, night: Night, name: str
) -> tuple[int, dict[str, list[tuple[Prompt, str]]]]:
    """Return the number of answers that could be an event, and the events by rate."""
    if name == "rejection_rates":
        reasons = [(p, p.rejected or (None if p.text else Reason.NO_TEXT)) for p in night.prompts]
        return len(reasons), {
            f"{name}:{reason}": [(p, f"rejected: {why}") for p, why in reasons if why == reason]
            for reason in REJECTIONS
        }
    if name == "fallback_rate":
        answered = [p for p in night.prompts if p.fallback is not None]
        return len(answered), {
            name: [(p, "another model answered") for p in answered if p.fallback]
        }
    scored = [p for p in night.prompts if p.logprob is not None]
    unsure = [p for p in scored if (p.logprob or 0.0) < reference.min_confidence]
    unsure.sort(key=lambda p: p.logprob or 0.0)
    return len(scored), {name: [(p, f"mean log-probability {p.logprob:.2f}") for p in unsure]}


def two_tails(
    tails: Sequence[Tail], tallies: Sequence[Counts]
) -> tuple[Counts, Callable[[Counts], Floats]]:
    """Return the tally of two tails, and its test."""
    middle = len(tails[0].thresholds) + 1

    def test(tally: Counts) -> Floats:
        first, second = tails[0].test(tally[..., :middle]), tails[1].test(tally[..., middle:])
        return np.asarray(np.minimum(1.0, 2 * np.minimum(first, second)))

    return np.concatenate(tallies, axis=-1), test


def _strongest(
    night: Night,
    prompts: Sequence[Prompt],
    scores: Floats,
    counted: NDArray[np.bool_],
    why: Callable[[int], str],
) -> list[Driver]:
    order = [int(at) for at in np.argsort(-scores, kind="stable") if counted[at]]
    return [
        Driver(night.day, prompts[at].line, why(at), prompts[at].text)
        for at in order[:MOST_DRIVERS]
    ]


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


TEXT_SIGNALS: dict[str, Callable[[Reference, Night], Look | None]] = {
    "novelty_share": novelty_share,
    "length_psi": length_psi,
    "label_mix": label_mix,
    "mmd2": mmd2,
}
RATE_SIGNALS = ("low_confidence_rate", "fallback_rate", "rejection_rates")
