"""How often the rule blocks a harmless model, and how often it misses a real loss."""

import functools

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.lab.runs import broken, values

from tuneline.asking.general_questions import Question, load_suite
from tuneline.evaluation.forgetting import decision
from tuneline.evaluation.forgetting.decision import (
    CategoryRow,
    Limits,
    by_category,
    chance_of_losses,
    compare_texts,
    fails_early,
    judge,
    passes_early,
    plan_looks,
    questions_needed,
)
from tuneline.evidence import conclude
from tuneline.statistics import RowLosses, paired, paired_counts

LIMITS = Limits(drop=0.03, category=0.1, to_see=0.05)
FIRST = 400


@functools.cache
def suite():
    """The categories of the suite's questions, as numbers in its order."""
    categories = [question.category for question in load_suite()]
    names = sorted(set(categories))
    return np.array([names.index(category) for category in categories])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(decision, "chance_of_losses", functools.cache(chance_of_losses))


def night(draw, churn, loss):
    """The verdict over a model whose answers part from the base's on a share of the questions.

    `churn` is the share of questions that exactly one of the two answers right, `loss` the share
    lost, on balance; each is one number, or one for each question.
    """
    categories = suite()
    toss = draw.random(len(categories))
    lost, gained = toss < (churn + loss) / 2, (toss >= (churn + loss) / 2) & (toss < churn)
    for size in plan_looks(len(categories), FIRST):
        result, table = seen(lost[:size], gained[:size], categories[:size])
        if passes_early(result, table, LIMITS) or fails_early(result, table, LIMITS):
            break
    return conclude(judge(result, table, size, len(categories), LIMITS)), size


def seen(lost, gained, categories):
    """The paired difference and the table of what was lost and gained."""
    table = []
    for category in range(categories.max() + 1):
        at = categories == category
        a, b, n = int(lost[at].sum()), int(gained[at].sum()), int(at.sum())
        share = 0.5 - (b - a) / n
        p_value = decision.chance_of_losses(a, b)
        table.append(CategoryRow(str(category), n, share, 0.5, a, b, p_value))
    return paired_counts(int(lost.sum()), int(gained.sum()), len(lost)), table


@pytest.mark.parametrize(("churn", "first"), [(0.05, 0.9), (0.1, 0.65), (0.2, 0.4)])
def test_a_harmless_model_is_blocked_in_less_than_one_of_200_nights(churn, first):
    draw = np.random.default_rng(7)
    verdicts = [night(draw, churn, 0.0) for _ in range(1000)]
    # Inconclusive stops a production run as a failure does.
    assert sum(verdict != "pass" for verdict, _ in verdicts) <= 5
    # Where few answers change, most nights are done after the first look.
    assert np.mean([size == FIRST for _, size in verdicts]) > first


@pytest.mark.parametrize("churn", [0.06, 0.1, 0.2])
def test_a_loss_of_five_points_is_caught_in_19_of_20_nights(churn):
    draw = np.random.default_rng(11)
    caught = [night(draw, churn, 0.05)[0] == "fail" for _ in range(400)]
    assert np.mean(caught) >= 0.95


def test_a_loss_in_one_category_is_caught_although_others_gain():
    draw = np.random.default_rng(5)
    forgotten = np.where(suite() == 0, 0.3, -0.3 * np.mean(suite() == 0))
    verdicts = [night(draw, np.where(suite() == 0, 0.4, 0.1), forgotten)[0] for _ in range(60)]
    assert verdicts.count("fail") >= 57


def row(base=0.5, tuned=0.5, lost=5, gained=5, p_value=0.6):
    return CategoryRow("facts", 100, base, tuned, lost, gained, p_value)


def test_the_allowance_does_not_grow_with_churn():
    # 27 losses beside 15 gains in 164 are a net loss of 7 %.
    base = [True] * 100 + [False] * 64
    tuned = [False] * 27 + [True] * 73 + [True] * 15 + [False] * 49
    result = paired(base, tuned)
    measurements = judge(result, [row()], 164, 164, LIMITS)
    assert broken(measurements) == {"drop", "detectable_drop"}
    assert conclude(measurements) == "inconclusive"
    assert not passes_early(result, [row()], LIMITS)
    # The same shares of many questions are no chance.
    many = paired(base * 12, tuned * 12)
    assert conclude(judge(many, [row()], 1968, 1968, LIMITS)) == "fail"


def test_too_few_questions_are_inconclusive_and_say_how_many_are_needed():
    few = paired([True, False] * 30, [True, False] * 29 + [False, True])
    measurements = judge(few, [row()], 60, 60, LIMITS)
    assert broken(measurements) == {"detectable_drop"}
    assert conclude(measurements) == "inconclusive"
    needed = questions_needed(few, 60, LIMITS)
    same_share = paired_counts(needed // 60, needed // 60, needed)
    assert judge(same_share, [row()], needed, needed, LIMITS)[5].value <= LIMITS.to_see + 1e-3


def test_a_category_that_looks_worse_is_asked_more_before_it_is_blocked():
    kept = paired([True] * 300 + [False] * 100, [True] * 300 + [False] * 100)
    worse = row(base=0.6, tuned=0.45, lost=9, gained=1, p_value=chance_of_losses(9, 1))
    assert passes_early(kept, [row()], LIMITS)
    assert not passes_early(kept, [worse], LIMITS)
    assert broken(judge(kept, [worse], 2000, 2000, LIMITS)) == set()
    lost = row(base=0.6, tuned=0.45, lost=40, gained=5, p_value=chance_of_losses(40, 5))
    assert broken(judge(kept, [lost], 2000, 2000, LIMITS)) == {"categories_lost"}


def test_a_loss_beyond_doubt_is_blocked_after_the_first_look():
    draw = np.random.default_rng(13)
    verdicts = [night(draw, 0.35, 0.25) for _ in range(60)]
    assert set(verdicts) == {("fail", FIRST)}


def test_what_blocks_before_the_last_look_is_no_chance_and_breaks_the_same_limits():
    # A chance of 2^-16 is not enough of 400 questions, one of 2^-17 is; 3 % are 12 questions.
    for lost, early in ((16, False), (17, True)):
        result = paired_counts(lost, 0, 400)
        assert fails_early(result, [row()], LIMITS) is early
    blocked = judge(paired_counts(17, 0, 400), [row()], 400, 2047, LIMITS)
    assert (broken(blocked), conclude(blocked)) == ({"drop"}, "fail")
    # Certain, and within what is allowed.
    assert not fails_early(paired_counts(30, 0, 2000), [row()], LIMITS)
    kept = paired_counts(0, 0, 400)
    lost = row(base=0.6, tuned=0.3, lost=17, gained=0, p_value=chance_of_losses(17, 0))
    assert fails_early(kept, [lost], LIMITS)
    assert conclude(judge(kept, [lost], 400, 2047, LIMITS)) == "fail"


def test_looks_tables_and_chances_are_exact():
    assert [plan_looks(n, 400) for n in (2047, 500, 20)] == [[400, 1000, 2047], [500], [20]]
    questions = [Question(f"{c}{n}", c, "?", {}, 8) for c in "ab" for n in range(5)]
    table = by_category(questions, [True] * 10, [True] * 5 + [False] * 5)
    assert [(r.category, r.questions, r.change, r.lost, r.gained) for r in table] == [
        ("a", 5, 0.0, 0, 0),
        ("b", 5, -1.0, 5, 0),
    ]
    assert table[1].p_value == pytest.approx(1 / 32)
    for lost, gained in ((0, 0), (9, 1), (40, 25), (400, 330)):
        expected = binomtest(lost, lost + gained, alternative="greater").pvalue if lost else 1.0
        assert chance_of_losses(lost, gained) == pytest.approx(expected, rel=1e-9)


TARGETS = (80, 100, 120, 90)


def losses(per_token, noise=0.0):
    sums = (n * (per_token + (noise if at % 2 else -noise)) for at, n in enumerate(TARGETS))
    return RowLosses(tuple(sums), TARGETS, (1.0,) * len(TARGETS))


@pytest.mark.parametrize(
    ("tuned", "limit", "names"),
    [
        (losses(3.05), None, set()),
        # A model that forgot prose, and one that may.
        (losses(3.8, noise=0.05), None, {"perplexity_ratio_lower"}),
        (losses(3.8), 3.0, set()),
        # What only chance puts beyond the limit passes.
        (losses(3.45, noise=0.6), None, set()),
    ],
)
def test_texts_that_got_less_likely_beyond_chance_fail(tuned, limit, names):
    assert broken(compare_texts((losses(3.0), tuned), limit)) == names


def test_texts_are_summed_up_or_said_to_be_unknown():
    finding = compare_texts((losses(3.0), losses(3.05)), None)
    assert values(finding)["perplexity_ratio"] == pytest.approx(1.0513, abs=1e-3)
    assert "1.051 times that of the base" in finding.sentence
    unknown = compare_texts(None, None)
    assert "does not report the probabilities" in unknown.sentence
    assert conclude(unknown.measurements) == "inconclusive"
