"""The rule of a canary over 200 simulated ones: its error rates are those that it states."""

import itertools
import math
import random
from bisect import bisect_left

import pytest

from tuneline.serving.following.canaries import MARGINS, SLOW, CanaryRule, since
from tuneline.serving.following.e_values import (
    Block,
    Dispersion,
    Progress,
    add_not_worse,
    add_worse,
    nearest,
)
from tuneline.serving.gateway.chain.canary import BOUNDS, ArmCounts

# Of 200 canaries with an error probability of 5 %, more than this go wrong once in 10,000 times.
CANARIES, MOST_WRONG = 200, 23
SHARE, PER_LOOK, LOOKS = 0.2, 200, 60
RATES = {"errors": 0.01, "answers of low confidence": 0.08, "fallbacks": 0.09}


def answer(draw, counts, rates, slower):
    counts.requests += 1
    for name, rate in rates.items():
        counts.hits[name] = counts.hits.get(name, 0) + (draw.random() < rate)
    seconds = draw.lognormvariate(math.log(0.4), 0.5) * slower
    counts.seconds[bisect_left(BOUNDS, seconds)] += 1


def canary(seed, rates=RATES, slower=1.0, looks=LOOKS, bursts=0.0):
    """The outcome of one canary; each request goes to the candidate by chance.

    In a share of the looks, drawn for each arm by itself, all answers take four times as long.
    """
    draw = random.Random(seed)
    rule, candidate, released = CanaryRule(), ArmCounts(), ArmCounts()
    for _ in range(looks):
        arms = ArmCounts(), ArmCounts()
        late = [4.0 if draw.random() < bursts else 1.0 for _ in arms]
        for _ in range(PER_LOOK):
            if draw.random() < SHARE:
                answer(draw, arms[0], rates, slower * late[0])
            else:
                answer(draw, arms[1], RATES, late[1])
        candidate, released = plus(candidate, arms[0]), plus(released, arms[1])
        found = rule.look(candidate, released)
        if found.action:
            return found.action
    return None


def plus(before, new):
    hits = {name: before.hits.get(name, 0) + count for name, count in new.hits.items()}
    seconds = [a + b for a, b in zip(before.seconds, new.seconds, strict=True)]
    return ArmCounts(before.requests + new.requests, hits, seconds)


def outcomes(**how):
    return [canary(seed, **how) for seed in range(CANARIES)]


def test_equal_candidates_are_promoted():
    found = outcomes()
    assert found.count("withdraw") <= MOST_WRONG
    assert found.count("promote") >= 0.9 * CANARIES


@pytest.mark.parametrize(
    "how",
    [
        {"slower": 1.5},
        {"rates": {**RATES, "errors": 0.05}},
        {"rates": {**RATES, "answers of low confidence": 0.2, "fallbacks": 0.21}},
        {"rates": {**RATES, "fallbacks": 0.2}},
    ],
    ids=["slower", "wrong", "unsure", "falls back"],
)
def test_worse_candidates_are_withdrawn(how):
    found = outcomes(**how)
    assert found.count("promote") <= MOST_WRONG
    assert found.count("withdraw") >= 0.9 * CANARIES


def test_bursts_of_slow_answers_do_not_withdraw_an_equal_candidate():
    found = outcomes(looks=240, bursts=0.15)
    assert found.count("withdraw") <= MOST_WRONG
    # The others are undecided after two hours.
    assert found.count("promote") >= 0.7 * CANARIES


def test_bursts_of_slow_answers_hide_no_slow_candidate():
    found = outcomes(looks=240, bursts=0.15, slower=1.5)
    assert found.count("promote") <= MOST_WRONG
    assert found.count("withdraw") >= 0.7 * CANARIES


def test_candidates_worse_by_a_margin_are_seldom_promoted():
    """The hardest case that the stated rate is about: worse by exactly the margin in one share."""
    name = "answers of low confidence"
    found = outcomes(rates={**RATES, name: RATES[name] + MARGINS[name]})
    assert found.count("promote") <= MOST_WRONG


def add(progress, block, margin):
    return add_not_worse(progress, block, margin) if margin else add_worse(progress, block)


@pytest.mark.parametrize(("candidate", "released"), [(3, 5), (1, 9), (6, 2)])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_no_e_value_has_an_expectation_above_one_under_its_null(candidate, released, rate):
    """All outcomes of a block, with their probabilities under the edge of the null hypothesis."""
    for margin in (0.0, 0.05):
        total = 0.0
        for hits in itertools.product(range(candidate + 1), range(released + 1)):
            block = Block(candidate, hits[0], released, hits[1])
            before = add(Progress(), Block(50, 20, 50, 10), margin)
            after = add(before, block, margin)
            chance = binomial(hits[0], candidate, min(rate + margin, 1.0))
            chance *= binomial(hits[1], released, rate)
            total += chance * math.exp(after.log_e - before.log_e)
        assert total <= 1 + 1e-9


def test_the_dispersion_of_independent_requests_is_about_one():
    draw, known = random.Random(1), Dispersion()
    for _ in range(400):
        hits = [sum(draw.random() < 0.2 for _ in range(n)) for n in (10, 40)]
        known = known.with_block(Block(10, hits[0], 40, hits[1]))
    assert 1.0 <= known.factor < 1.2
    for _ in range(100):
        known = known.with_block(Block(10, 9, 40, 8)).with_block(Block(10, 2, 40, 34))
    assert known.factor > 5


def test_what_makes_both_slow_is_no_dispersion():
    known = Dispersion()
    for rate in (2, 8) * 50:
        known = known.with_block(Block(10, rate, 40, 4 * rate))
    assert known.factor == 1.0


def test_looks_without_a_comparison_say_nothing_of_the_dispersion():
    for block in (Block(0, 0, 5, 2), Block(5, 2, 0, 0), Block(5, 0, 9, 0), Block(5, 5, 9, 9)):
        assert Dispersion().with_block(block) == Dispersion()


def binomial(hits, total, rate):
    return math.comb(total, hits) * rate**hits * (1 - rate) ** (total - hits)


def test_the_nearest_rates_lie_a_margin_apart_around_the_rate():
    candidate, released = nearest(0.3, 100, 100, 0.1)
    assert candidate - released == pytest.approx(0.1)
    assert released < 0.3 < candidate


def test_a_gateway_that_counts_from_zero_again_loses_nothing():
    first = ArmCounts(10, {"errors": 1}, [0] * 44 + [10])
    again = ArmCounts(4, {"errors": 2}, [0] * 44 + [4])
    assert since(first, again) is again
    assert since(ArmCounts(6, {"errors": 1}, [0] * 44 + [6]), first).requests == 4


def test_slow_is_what_the_release_seldom_is():
    rule = CanaryRule()
    seconds = [0] * (len(BOUNDS) + 1)
    seconds[5], seconds[20] = 80, 20
    counts = ArmCounts(100, {}, seconds)
    assert SLOW in rule.look(counts, counts).reason
