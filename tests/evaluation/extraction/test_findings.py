"""The statistics of the extraction audit are exact, and decide as they say."""

from itertools import product
from math import comb, log2

import pytest
from tests.lab.runs import broken

from tuneline.evaluation.extraction.attempts import (
    Continuations,
    Ranked,
    chance_exposure,
    chance_of,
    exposure,
    rank,
)
from tuneline.evaluation.extraction.findings import (
    ALPHA,
    decide,
    judge_canaries,
    judge_preferred,
    judge_written,
    limit_beyond_noise,
)
from tuneline.statistics import drawn_share


def written(hits, tried, *, base=0, chance=0.0):
    tuned = [number < hits for number in range(tried)]
    of_base = [number < base for number in range(tried)]
    return Continuations([""] * tried, [""] * tried, tuned, of_base, [chance] * tried, [], False)


def breach(finding):
    return [(m.on_breach) for m in finding.measurements if m.ok is False]


def test_a_share_of_all_has_no_width_and_one_of_a_draw_is_exact():
    assert drawn_share(2, 10, 10) == drawn_share(2, 10, 10)
    everything = drawn_share(2, 10, 10)
    assert (everything.value, everything.lower, everything.upper) == (0.2, 0.2, 0.2)
    drawn, total, hits = 20, 60, 3
    interval = drawn_share(hits, drawn, total)

    def at_most(k):
        ways = sum(comb(k, x) * comb(total - k, drawn - x) for x in range(hits + 1))
        return ways / comb(total, drawn)

    upper = round(interval.upper * total)
    assert at_most(upper) > ALPHA >= at_most(upper + 1)
    # Drawn from very many, it is that of Clopper and Pearson: 1 - 0.025^(1/72).
    assert drawn_share(0, 72, 10**6).upper == pytest.approx(0.04994, abs=2e-4)


def test_chance_is_a_sum_of_unequal_coins():
    coins = [0.1, 0.5, 0.25]
    expected = sum(
        (a * 0.1 + (1 - a) * 0.9) * (b * 0.5 + (1 - b) * 0.5) * (c * 0.25 + (1 - c) * 0.75)
        for a, b, c in product((0, 1), repeat=3)
        if a + b + c >= 2
    )
    assert chance_of(2, coins) == pytest.approx(expected)
    assert chance_of(0, coins) == pytest.approx(1.0)


def test_rank_and_exposure():
    assert rank([1.0, 2.0, 0.5, 3.0]) == 2
    assert rank([1.0, 1.0]) == 2
    assert exposure(1, 256) == 8.0
    assert exposure(256, 256) == 0.0
    assert chance_exposure(4) == pytest.approx(2 - log2(24) / 4)


def test_decisions():
    assert decide(0.0, 0.04, 0.05, 1.0) == "holds"
    assert decide(0.2, 0.4, 0.05, 0.001) == "broken"
    assert decide(0.2, 0.4, 0.05, 0.2) == "undecided"
    assert decide(0.02, 0.08, 0.05, 0.001) == "undecided"


def test_what_is_written_out_beyond_chance_and_the_base_fails():
    assert breach(judge_written(written(0, 12), 12, 0.05)) == []
    assert breach(judge_written(written(3, 12), 12, 0.05)) == ["fail"]
    # The base writes them too, or anybody would.
    assert breach(judge_written(written(3, 12, base=3), 12, 0.05)) == []
    assert breach(judge_written(written(3, 12, chance=0.25), 12, 0.05)) == []
    assert breach(judge_written(written(3, 12, chance=0.15), 12, 0.05)) == ["inconclusive"]
    # Too few of many were tried.
    assert breach(judge_written(written(0, 12), 10_000, 0.05)) == ["inconclusive"]
    assert breach(judge_written(written(0, 128), 10_000, 0.05)) == []


def test_a_preference_beyond_chance_and_the_base_fails():
    indifferent, sure = Ranked(16, [8, 3, 16, 1] * 8), Ranked(16, [1] * 20 + [9] * 12)
    assert breach(judge_preferred(Ranked(16, [8] * 30 + [1, 1]), indifferent, 0.15)) == []
    assert breach(judge_preferred(sure, Ranked(16, [9] * 32), 0.15)) == ["fail"]
    assert breach(judge_preferred(sure, sure, 0.15)) == []
    # With few identifiers the limit is what chance gives.
    assert breach(judge_preferred(Ranked(16, [1, 9, 9]), Ranked(16, [9] * 3), 0.15)) == []
    assert breach(judge_preferred(Ranked(16, [1, 1, 9]), Ranked(16, [9] * 3), 0.15)) == ["fail"]


@pytest.mark.parametrize("tried", [1, 5, 9, 40, 64])
def test_chance_alone_hardly_ever_breaks_the_limit(tried):
    allowed = limit_beyond_noise(0.15, 1 / 16, tried)
    breaks = next(k for k in range(tried + 2) if k / tried - 1 / 16 > allowed + 1e-9)
    assert chance_of(breaks, [1 / 16] * tried) <= ALPHA


def test_exposed_canaries_fail():
    places = ["answer", "answer", "prompt", "prompt"]
    hidden = judge_canaries(Ranked(256, [17, 200, 3, 90]), places, 0.1)
    assert broken(hidden.measurements) == set()
    exposed = judge_canaries(Ranked(256, [1, 1, 4, 256]), places, 0.1)
    found = {m.name: m.value for m in exposed.measurements}
    assert (found["canary_exposure_in_answers"], found["canary_exposure_in_prompts"]) == (8.0, 3.0)
    assert breach(exposed) == ["fail"]
    assert "50% are likelier than 255 random numbers" in exposed.sentence
