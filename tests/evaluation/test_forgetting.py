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
    Look,
    by_category,
    chance_of_losses,
    compare_texts,
    fails_early,
    judge,
    passes_early,
    plan_looks,
    questions_needed,
    smallest_drop_named,
)
from tuneline.evidence import conclude
from tuneline.statistics import TAIL, RowLosses, paired, paired_counts, score_interval

LIMITS = Limits(drop=0.03, category=0.1, to_see=0.05)
# The limits of the laptop's preset, and its questions.
LAPTOP, ASKED = Limits(drop=0.12, category=0.1, to_see=0.16), 400
FIRST = 400
LAST = Look(400, TAIL)


@functools.cache
def suite():
    """The categories of the suite's questions, as numbers in its order."""
    categories = [question.category for question in load_suite()]
    names = sorted(set(categories))
    return np.array([names.index(category) for category in categories])


QUICK = {f.__name__: functools.cache(f) for f in (chance_of_losses, score_interval)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, cached in QUICK.items():
        monkeypatch.setattr(decision, name, cached)


def night(draw, churn, loss, limits=LIMITS, asked=None):
    """The verdict over a model whose answers part from the base's on a share of the questions.

    `churn` is the share of questions that exactly one of the two answers right, `loss` the share
    lost, on balance; each is one number, or one for each question.
    """
    categories = suite()[:asked]
    toss = draw.random(len(categories))
    lost, gained = toss < (churn + loss) / 2, (toss >= (churn + loss) / 2) & (toss < churn)
    for look in plan_looks(len(categories), FIRST):
        size = look.questions
        result, table = seen(lost[:size], gained[:size], categories[:size])
        if passes_early(result, table, look, limits) or fails_early(result, table, limits):
            break
    return conclude(judge(result, table, look, len(categories), limits)), size


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


@pytest.mark.parametrize(("churn", "first"), [(0.05, 0.9), (0.1, 0.55), (0.2, 0.3)])
def test_a_harmless_model_is_blocked_in_less_than_one_of_200_nights(churn, first):
    draw = np.random.default_rng(7)
    verdicts = [night(draw, churn, 0.0) for _ in range(1000)]
    # Inconclusive stops a production run as a failure does; a loss that is shown, by chance, warns.
    assert sum(verdict in ("fail", "inconclusive") for verdict, _ in verdicts) <= 5
    assert sum(verdict == "warn" for verdict, _ in verdicts) <= 35
    # Where few answers change, most nights are done after the first look.
    assert np.mean([size == FIRST for _, size in verdicts]) > first


@pytest.mark.parametrize(("limits", "asked"), [(LIMITS, None), (LAPTOP, ASKED)])
def test_a_loss_that_must_be_seen_passes_in_one_of_40_nights_over_all_looks(limits, asked):
    draw = np.random.default_rng(17)
    # Neither beyond chance nor more than is allowed, so that the interval alone decides.
    wide = Limits(1.0, 1.0, limits.to_see)
    verdicts = [night(draw, 0.2, limits.to_see, wide, asked)[0] for _ in range(600)]
    assert sum(verdict in ("pass", "warn") for verdict in verdicts) <= 21


def test_a_sound_demo_warns_and_a_loss_beyond_the_limit_never_passes_in_silence():
    draw = np.random.default_rng(19)
    sound = [night(draw, 0.17, 0.065, LAPTOP, ASKED)[0] for _ in range(300)]
    assert np.mean([verdict == "warn" for verdict in sound]) > 0.85
    assert np.mean([verdict in ("fail", "inconclusive") for verdict in sound]) < 0.02
    lost = [night(draw, 0.25, 0.2, LAPTOP, ASKED)[0] for _ in range(300)]
    assert lost.count("pass") == 0
    assert lost.count("fail") >= 297


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
    measurements = judge(result, [row()], Look(164, TAIL), 164, LIMITS)
    assert broken(measurements) == {"drop", "drop_upper"}
    assert conclude(measurements) == "inconclusive"
    assert not passes_early(result, [row()], Look(164, TAIL), LIMITS)
    # The same shares of many questions are no chance.
    many = paired(base * 12, tuned * 12)
    assert conclude(judge(many, [row()], Look(1968, TAIL), 1968, LIMITS)) == "fail"


def test_too_few_questions_are_inconclusive_and_say_how_many_are_needed():
    few = paired_counts(6, 6, 60)
    measurements = judge(few, [row()], Look(60, TAIL), 60, LIMITS)
    assert broken(measurements) == {"drop_upper"}
    assert conclude(measurements) == "inconclusive"
    needed = questions_needed(few, 60, LIMITS)
    # About as many: the score interval is wider than the standard error of what was seen.
    needed = int(1.1 * needed)
    same_share = paired_counts(needed // 10, needed // 10, needed)
    assert broken(judge(same_share, [row()], Look(needed, TAIL), needed, LIMITS)) == set()
    # No number excludes the loss that there is.
    assert questions_needed(paired_counts(8, 2, 60), 60, LIMITS) is None


@pytest.mark.parametrize(
    ("counts", "look", "limits", "verdict", "names"),
    [
        # The demo of old: a loss that is allowed, and shown; the limit of then does not exclude it.
        ((17, 5, 160), Look(160, TAIL), Limits(0.1, 0.1, 0.15), "warn", {"drop_lower"}),
        ((17, 5, 160), Look(160, TAIL), Limits(0.1, 0.1, 0.12), "inconclusive", None),
        ((50, 18, 400), LAST, LAPTOP, "warn", {"drop_lower"}),
        ((20, 18, 400), LAST, LAPTOP, "pass", set()),
        # Beyond the allowed loss: by an estimate beyond chance, and by the lower end.
        ((64, 12, 400), LAST, LAPTOP, "fail", None),
        ((400, 318, 2047), Look(2047, 0.015), LIMITS, "fail", None),
        ((300, 0, 400), LAST, Limits(0.12, 1.0, 0.16), "fail", None),
    ],
)
def test_a_verdict_says_what_the_interval_shows(counts, look, limits, verdict, names):
    measurements = judge(paired_counts(*counts), [row()], look, look.questions, limits)
    assert conclude(measurements) == verdict
    assert names is None or broken(measurements) == names


def test_a_category_says_what_it_could_have_shown():
    chance = chance_of_losses(16, 0)
    few = CategoryRow("refusal", 16, 1.0, 0.0, 16, 0, chance)
    asked = [CategoryRow(str(n), 50, 0.5, 0.5, 5, 5, 0.6) for n in range(7)]
    # 2^-13 is the largest chance below 0.1 % of eight; with gains it takes more.
    assert smallest_drop_named(0, 50, 0.001 / 8) == 13 / 50
    assert smallest_drop_named(5, 50, 0.001 / 8) == 21 / 50
    assert smallest_drop_named(0, 6, 0.001 / 8) is None
    found = judge(paired_counts(51, 35, 400), [*asked, few], LAST, 400, LAPTOP)
    stated = {m.name: m.value for m in found}
    assert (stated["categories_not_judged"], stated["worst_category"]) == ("refusal", "0")
    # Too few to say that nothing is lost, enough to see that all is.
    assert "categories_lost" in broken(found)


def test_a_category_that_looks_worse_is_asked_more_before_it_is_blocked():
    kept = paired([True] * 300 + [False] * 100, [True] * 300 + [False] * 100)
    worse = row(base=0.6, tuned=0.45, lost=9, gained=1, p_value=chance_of_losses(9, 1))
    assert passes_early(kept, [row()], LAST, LIMITS)
    assert not passes_early(kept, [worse], LAST, LIMITS)
    assert broken(judge(kept, [worse], Look(2000, TAIL), 2000, LIMITS)) == set()
    lost = row(base=0.6, tuned=0.45, lost=40, gained=5, p_value=chance_of_losses(40, 5))
    assert broken(judge(kept, [lost], Look(2000, TAIL), 2000, LIMITS)) == {"categories_lost"}


def test_a_loss_beyond_doubt_is_blocked_after_the_first_look():
    draw = np.random.default_rng(13)
    verdicts = [night(draw, 0.35, 0.25) for _ in range(60)]
    assert set(verdicts) == {("fail", FIRST)}


def test_what_blocks_before_the_last_look_is_no_chance_and_breaks_the_same_limits():
    # A chance of 2^-16 is not enough of 400 questions, one of 2^-17 is; 3 % are 12 questions.
    for lost, early in ((16, False), (17, True)):
        result = paired_counts(lost, 0, 400)
        assert fails_early(result, [row()], LIMITS) is early
    first = Look(400, 0.005)
    blocked = judge(paired_counts(17, 0, 400), [row()], first, 2047, LIMITS)
    assert {"drop", "drop_lower"} <= broken(blocked)
    assert conclude(blocked) == "fail"
    # Certain, and within what is allowed.
    assert not fails_early(paired_counts(30, 0, 2000), [row()], LIMITS)
    kept = paired_counts(0, 0, 400)
    lost = row(base=0.6, tuned=0.3, lost=17, gained=0, p_value=chance_of_losses(17, 0))
    assert fails_early(kept, [lost], LIMITS)
    assert conclude(judge(kept, [lost], first, 2047, LIMITS)) == "fail"


def test_looks_tables_and_chances_are_exact():
    assert plan_looks(2047, 400) == [(400, 0.005), (1000, 0.005), (2047, pytest.approx(0.015))]
    assert [plan_looks(n, 400) for n in (500, 20)] == [[(500, TAIL)], [(20, TAIL)]]
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
        (losses(3.8, noise=0.05), None, {"perplexity_ratio_lower", "perplexity_ratio_upper"}),
        (losses(3.8), 3.0, set()),
        # Few texts decide nothing about the limit, on either side of it.
        (losses(3.45, noise=0.6), None, {"perplexity_ratio_upper"}),
        (losses(3.35, noise=0.6), None, {"perplexity_ratio_upper"}),
    ],
)
def test_texts_that_got_less_likely_beyond_chance_fail(tuned, limit, names):
    finding = compare_texts((losses(3.0), tuned), limit)
    assert broken(finding) == names
    assert conclude(finding.measurements) == ("pass", "inconclusive", "fail")[len(names)]


def test_texts_are_summed_up_or_said_to_be_unknown():
    finding = compare_texts((losses(3.0), losses(3.05)), None)
    assert values(finding)["perplexity_ratio"] == pytest.approx(1.0513, abs=1e-3)
    assert "1.051 times that of the base" in finding.sentence
    unknown = compare_texts(None, None)
    assert "does not report the probabilities" in unknown.sentence
    assert conclude(unknown.measurements) == "inconclusive"
