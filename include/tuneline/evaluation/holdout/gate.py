"""Decide whether the candidate is good enough: against the base, trivial answers and a floor.

The candidate must be better than the base as it is asked, better than the base at its best
(`fair_base`), and better than a constant answer, each by the lower end of the paired interval; and
its metric must reach the configured floor. It must beat every one of them, so that no correction
for several comparisons is due (an intersection-union test). What the rows can't show is
inconclusive (`claims`). The answers of the nearest training rows warn where the candidate is not
shown to be better; where it is shown to be worse than them, production stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuneline.data.conversations.answers import answer_object
from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.claims import Claim, size_measurements, undecided_sentence
from tuneline.evaluation.holdout.fair_base import FairBase, Form, fair_base
from tuneline.evaluation.holdout.tables import by_field, confusion, label_measurements, wrong_rows
from tuneline.evaluation.holdout.trivial import constant_answer, nearest_answers
from tuneline.evidence import Breach, Measurement, measure
from tuneline.harness.answers import Task
from tuneline.harness.asking import Answers
from tuneline.harness.bootstrap import RESAMPLES, SEED
from tuneline.harness.intervals import Interval, Paired
from tuneline.harness.judged import Judged, compare, judge
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Decision:
    """What the hold-out shows of the candidate.

    Attributes:
        base: the base's answers, judged.
        tuned: the candidate's answers, judged.
        measurements: all that was measured, with the rules that decide.
        sentence: what it says, for the summary.
    """

    base: Judged
    tuned: Judged
    measurements: list[Measurement]
    sentence: str


def decide(
    ctx: StepContext, task: Task, rows: Sequence[Row], train: Sequence[Row], answers: Answers
) -> Decision:
    """Judge base and candidate, compare the candidate with all it must beat, write the tables.

    Args:
        ctx: the step.
        task: the rule by which answers are scored.
        rows: the hold-out rows.
        train: the training rows.
        answers: the answers of base and candidate to the hold-out rows.
    """
    settings = ctx.config.evaluation
    expected = [row.answer for row in rows]
    base, tuned = (judge(task, texts, expected) for texts in (answers.base, answers.tuned))
    gained = compare(base, tuned)
    gain = Claim("gain", "better than the base", gained.difference, len(rows), settings.min_gain)
    chance = fair_base(ctx, task, rows, train, answers.base)
    form, fair = hardest_form(chance, tuned, settings.min_gain)
    constant, nearest = against_trivial(ctx, tuned, rows, train)
    claims = [gain, fair, constant, *floor_claims(tuned.interval, len(rows), settings.min_metric)]
    named = {"base": answers.base, "tuned": answers.tuned}
    write_tables(ctx, rows, named, {"base": base, "tuned": tuned})
    return Decision(
        base,
        tuned,
        [
            measure("metric", task.name, ""),
            measure("metric_chosen_because", task.why, ""),
            *score_measurements(base.interval, tuned.interval, gain, settings.min_metric, claims),
            *difference_counts(gained, graded=task.graded),
            *size_measurements(claims, gain),
            measure("fair_base_form", form.name, ""),
            measure("fair_base_metric", round(form.judged.interval.value, 4), "share"),
            *fair.measurements(),
            *chance.measurements,
            *constant.measurements(),
            *nearest.measurements(nearest_breach(nearest, ctx.config.profile)),
            *form_measurements(task, named, expected),
            *label_measurements("base", base),
            *label_measurements("tuned", tuned),
            *_resampling(task),
        ],
        f"{task.name} on {len(rows)} hold-out rows: tuned {tuned.interval.text()}, base "
        f"{base.interval.text()}; {_gain_sentence(gain)}; over the base with {form.name} "
        f"{fair.estimate.value:+.3f}, over a constant answer {constant.estimate.value:+.3f}, over "
        f"the nearest training row {nearest.estimate.value:+.3f}{_doubt(nearest)}"
        f"{undecided_sentence(claims)}",
    )


def hardest_form(chance: FairBase, tuned: Judged, min_gain: float) -> tuple[Form, Claim]:
    """Return the form of the base over which the candidate's gain is the least certain.

    Args:
        chance: the base in its forms.
        tuned: the candidate's answers.
        min_gain: the limit of the gain.
    """
    found = []
    for form in chance.forms:
        difference = compare(form.judged, tuned.rows(form.keep)).difference
        about = f"better than the base with {form.name}"
        rows = len(form.judged.scores)
        found.append((form, Claim("gain_over_fair_base", about, difference, rows, min_gain)))
    return min(found, key=lambda pair: pair[1].estimate.lower)


def against_trivial(
    ctx: StepContext, tuned: Judged, rows: Sequence[Row], train: Sequence[Row]
) -> tuple[Claim, Claim]:
    """Compare the candidate with one constant answer, and with those of nearest training rows."""
    seed, limit = ctx.config.training.seed, ctx.config.evaluation.min_gain_over_trivial
    expected = [row.answer for row in rows]
    found = []
    for name, about, texts in (
        (
            "gain_over_constant",
            "better than one constant answer",
            [constant_answer(tuned.task, train, seed)] * len(rows),
        ),
        (
            "gain_over_nearest_row",
            "better than the answers of the nearest training rows",
            nearest_answers(train, rows, seed),
        ),
    ):
        difference = compare(judge(tuned.task, texts, expected), tuned).difference
        found.append(Claim(name, about, difference, len(rows), limit))
    return found[0], found[1]


def nearest_breach(nearest: Claim, profile: str) -> Breach:
    """Return what it means that the candidate is not shown to beat the nearest training rows."""
    worse = nearest.estimate.upper < nearest.limit
    return "fail" if worse and profile == "production" else "warn"


def floor_claims(tuned: Interval, rows: int, floor: float | None) -> list[Claim]:
    """Return the claim that the metric reaches the configured floor; none without a floor."""
    if floor is None:
        return []
    return [Claim("tuned_metric", f"at {floor:g} or above", tuned, rows, floor, ">=")]


def score_measurements(
    base: Interval, tuned: Interval, gain: Claim, floor: float | None, claims: Sequence[Claim]
) -> list[Measurement]:
    """State the metric of both models and the gain, whose lower end decides.

    Args:
        base: the metric of the base.
        tuned: the metric of the candidate.
        gain: the claim that it is better than the base.
        floor: the configured floor, None for none.
        claims: all claims that decide, with that of the floor.
    """
    found: list[Measurement] = []
    for name, interval in (("base", base), ("tuned", tuned)):
        floors = [c for c in claims if c.name == f"{name}_metric"]
        found += floors[0].measurements() if floors else _stated(f"{name}_metric", interval)
    return [*found, measure("min_metric", floor, "share"), *gain.measurements()]


def _stated(name: str, interval: Interval) -> list[Measurement]:
    return [
        measure(name, round(interval.value, 4), "share", noise=round(interval.error, 4)),
        measure(f"{name}_lower", round(interval.lower, 4), "share"),
        measure(f"{name}_upper", round(interval.upper, 4), "share"),
    ]


def difference_counts(found: Paired, *, graded: bool) -> list[Measurement]:
    """State on how many rows one model does better, and the sign test on them."""
    test, right = ("sign_test_p", "better") if graded else ("mcnemar_p", "right")
    return [
        measure(test, round(found.p_value, 6), "p"),
        measure(f"only_base_{right}", found.only_first, "rows"),
        measure(f"only_tuned_{right}", found.only_second, "rows"),
    ]


def form_measurements(
    task: Task, answers: Mapping[str, Sequence[str]], expected: Sequence[str]
) -> Iterator[Measurement]:
    """Measure how much of the metric is form: valid JSON, and right with its JSON found in prose.

    Args:
        task: the task; only a field of JSON has a form.
        answers: the answers of each model, by its name.
        expected: the expected answers.
    """
    if not task.field:
        return
    for who, texts in answers.items():
        valid = sum(answer_object(text) is not None for text in texts)
        loose = sum(map(task.right_anywhere, texts, expected))
        yield measure(f"{who}_valid_json", round(valid / len(texts), 4), "share")
        yield measure(f"{who}_right_ignoring_form", round(loose / len(texts), 4), "share")


def write_tables(
    ctx: StepContext,
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[str]],
    judged: Mapping[str, Judged],
) -> None:
    """Write the rows that were wrong, the fields of JSON answers, and the confused labels."""
    ctx.write_json("wrong_rows.json", wrong_rows(rows, answers["tuned"], judged["tuned"]))
    fields = by_field([row.answer for row in rows], answers)
    if fields:
        ctx.write_json("by_field.json", fields)
    if judged["tuned"].wanted:
        ctx.write_json("confusion.json", {who: confusion(one) for who, one in judged.items()})


def _doubt(nearest: Claim) -> str:
    """Say that a gain over the nearest training rows is not shown; empty if it is, or is none."""
    return " (which chance could explain)" if nearest.rows_needed is not None else ""


def _gain_sentence(gain: Claim) -> str:
    compared = "is more than" if gain.shown else "must be more than"
    return f"the lower end of the gain, {gain.estimate.lower:.3f}, {compared} {gain.limit:g}"


def _resampling(task: Task) -> list[Measurement]:
    if not task.graded and not task.has_labels:
        return []
    return [
        measure("bootstrap_resamples", RESAMPLES, "resamples"),
        measure("bootstrap_seed", SEED, "seed"),
    ]
