"""The rule of a canary over 200 simulated ones, and canaries whose follower or gateway restarts."""

import itertools
import json
import math
import random
import time
from bisect import bisect_left
from dataclasses import asdict

import pytest
from tests.lab.canaries import ASKED, release

from tuneline.artifacts.release_log import read_log
from tuneline.config.governance import ReleaseCanaryConfig
from tuneline.governance.release.canary import CanaryLog
from tuneline.serving.following.canaries import (
    MARGINS,
    SLOW,
    Canaries,
    CanaryOptions,
    CanaryRule,
    since,
)
from tuneline.serving.following.e_values import (
    Block,
    Dispersion,
    Progress,
    add_not_worse,
    add_worse,
    nearest,
)
from tuneline.serving.gateway.chain.canary import BOUNDS, ArmCounts
from tuneline.store import open_store

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


LOW = "answers of low confidence"
BURSTS = {"looks": 240, "bursts": 0.15}


@pytest.mark.parametrize(
    ("how", "outcome", "at_least"),
    [
        ({}, "promote", 0.9),
        # Undecided ones are left after two hours.
        (BURSTS, "promote", 0.7),
        ({"slower": 1.5}, "withdraw", 0.9),
        ({"slower": 1.5, **BURSTS}, "withdraw", 0.7),
        ({"rates": {**RATES, "errors": 0.05}}, "withdraw", 0.9),
        ({"rates": {**RATES, LOW: 0.2, "fallbacks": 0.21}}, "withdraw", 0.9),
        ({"rates": {**RATES, "fallbacks": 0.2}}, "withdraw", 0.9),
        # The hardest case of the stated rate: worse by exactly the margin in one share.
        ({"rates": {**RATES, LOW: RATES[LOW] + MARGINS[LOW]}}, "withdraw", 0.0),
    ],
)
def test_equal_candidates_are_promoted_and_worse_ones_withdrawn(how, outcome, at_least):
    """Bursts of slow answers withdraw no equal candidate, and hide no slow one."""
    found = [canary(seed, **how) for seed in range(CANARIES)]
    assert found.count({"promote": "withdraw", "withdraw": "promote"}[outcome]) <= MOST_WRONG
    assert found.count(outcome) >= at_least * CANARIES


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


def test_what_says_nothing_of_the_dispersion():
    known = Dispersion()
    # What makes both slow.
    for rate in (2, 8) * 50:
        known = known.with_block(Block(10, rate, 40, 4 * rate))
    assert known.factor == 1.0
    # Looks without a comparison.
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


NONE = ReleaseCanaryConfig()


class House:
    """A model whose second version is tried by a follower that can be replaced."""

    def __init__(self, folder):
        self.folder = folder
        self.store = open_store((folder / "store").as_uri())
        self.said = []
        for version in "12":
            release(self.store, "a", version)
        self.arms = ArmCounts(), ArmCounts()
        self.draw = random.Random(3)
        self.follow()

    def follow(self, share=0.1, hours=24.0, asked=NONE):
        options = CanaryOptions(share, hours, CanaryLog(self.store), look_seconds=0.0)
        self.canaries = Canaries(options, self.folder, self.said.append)
        if self.canaries.wants("a", "2", asked):
            self.canaries.begin("a")

    def serve(self, requests, rates=RATES):
        for _ in range(requests):
            arms = ArmCounts(), ArmCounts()
            answer(self.draw, arms[0], rates, 1.0)
            answer(self.draw, arms[1], RATES, 1.0)
            self.arms = tuple(plus(*pair) for pair in zip(self.arms, arms, strict=True))

    def look(self, began=1.0):
        candidate, released = map(asdict, self.arms)
        self.canaries.look("a", {"began": began, "candidate": candidate, "released": released})
        return self.canaries.reason("a", "2")

    @property
    def outcomes(self):
        lines = read_log(self.store, "a", "2").lines()
        return [getattr(line.event, "outcome", line.event.event) for line in lines]

    @property
    def kept(self):
        return json.loads((self.folder / "canaries.json").read_text())


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def whole(arms):
    """What one rule says who sees the same looks without an interruption."""
    rule = CanaryRule()
    for pair in arms:
        ruling = rule.look(*pair)
    return ruling


def test_a_new_follower_goes_on_with_all_that_was_seen(house):
    seen = []
    for _ in range(3):
        house.serve(20)
        seen.append(house.arms)
        house.look()
        before = house.canaries.reason("a", "2")
        began = house.kept["a"]["began"]
        house.follow()
        # Nothing is lost, nothing counts twice, and its hours go on.
        assert house.canaries.reason("a", "2") == before
        assert house.look() == before
        assert house.kept["a"]["began"] == began
    assert house.canaries.reason("a", "2").endswith(whole(seen).reason)
    assert "60 answers do not decide" in before
    assert house.said[-1] == f"a@2 is tried on 10% of the keys again: {whole(seen).reason}"
    assert house.outcomes == ["released", "started"]


def test_it_is_promoted_by_what_both_followers_saw(house):
    house.serve(400)
    house.look()
    house.follow()
    while "promoted" not in house.outcomes:
        house.serve(200)
        house.look()
        assert house.arms[0].requests < 5000
    assert house.kept == {}
    # The next follower has nothing to try.
    house.follow()
    assert house.canaries.reason("a", "2") is None


def test_a_gateway_that_counts_anew_adds_to_what_was_seen(house):
    house.serve(30)
    house.look()
    house.follow()
    # More requests than before, so that the numbers alone would not show it.
    house.arms = ArmCounts(), ArmCounts()
    house.serve(40)
    assert "70 answers do not decide" in house.look(began=2.0)


def test_a_worse_one_is_withdrawn_after_a_restart(house):
    looks = 0
    while "withdrawn" not in house.outcomes:
        house.serve(80, {**RATES, "errors": 0.3})
        house.look()
        house.follow()
        looks += 1
        assert looks < 12
    # A single burst of errors does not do it.
    assert looks >= 6
    assert house.outcomes[-2:] == ["withdrawn", "withdrawn"]
    assert house.kept == {}


def test_its_hours_go_on_while_no_follower_runs(house):
    house.serve(5)
    house.look()
    left = house.kept
    left["a"]["began"] = time.time() - 25 * 3600
    (house.folder / "canaries.json").write_text(json.dumps(left))
    house.follow()
    house.look()
    lines = read_log(house.store, "a", "2").lines()
    assert lines[-1].event.reason.startswith("undecided after 24 hours: 5 answers")


@pytest.mark.parametrize("damage", ["", "{}x", "shares", "buckets"])
def test_a_state_that_does_not_fit_begins_again(house, damage):
    house.serve(30)
    house.look()
    left = house.kept
    if damage == "shares":
        del left["a"]["known"]["shares"]["errors"]
    if damage == "buckets":
        left["a"]["known"]["candidate"]["seconds"].pop()
    text = json.dumps(left) if damage.isalpha() else damage
    (house.folder / "canaries.json").write_text(text)
    house.follow()
    assert any("begin again" in line or "begins again" in line for line in house.said)
    assert "30 answers do not decide" in house.look()


def test_the_release_goes_before_the_flags_of_the_follower(house):
    asked = ReleaseCanaryConfig.model_validate(ASKED["governance"]["canary"])
    options = CanaryOptions(0.3, 2.0, None, 30.0)
    assert options.terms(asked) == (0.1, 6.0)
    assert options.terms(NONE) == (0.3, 2.0)
    # Without flags only a release that asks for it is tried.
    house.follow(share=0.0)
    assert house.canaries.reason("a", "2") is None
    house.follow(share=0.0, asked=ReleaseCanaryConfig(share=0.25))
    assert house.canaries.share("a") == 0.25
