"""human_review: counting votes, the pairs that are needed, and Krippendorff's alpha."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneline.artifacts.evaluation import KeyEntry, Vote
from tuneline.evaluation.human_review import Preference, count, krippendorff_alpha
from tuneline.statistics import sign_test

KEY = {
    1: KeyEntry(pair=1, row_id="a", A="tuned", B="base"),
    2: KeyEntry(pair=2, row_id="b", A="base", B="tuned"),
}


def votes(text):
    """`alice 1 A` a line."""
    lines = (line.split(maxsplit=2) for line in text.strip().splitlines())
    return [Vote(pair=int(pair), choice=choice, reviewer=name) for name, pair, choice in lines]


def test_sides_are_looked_up_and_a_split_pair_is_tied():
    outcome = count(votes("alice 1 A\nbob 1 B\nalice 2 B\nbob 2 both bad\ncarol 2 B"), KEY)
    assert (outcome.wins, outcome.losses, outcome.ties, outcome.both_bad) == (1, 0, 1, 0)
    assert (outcome.reviewers, outcome.votes) == (("alice", "bob", "carol"), 5)


def test_both_bad_must_be_the_opinion_of_most():
    assert count(votes("alice 1 both bad\nbob 1 both bad\ncarol 1 A"), KEY).both_bad == 1
    assert count(votes("alice 1 both bad\nbob 1 A"), KEY).both_bad == 0


def power(pairs, p, alpha):
    """Probability that the sign test decides for the more frequent side, by enumeration."""
    return sum(
        math.comb(pairs, k) * p**k * (1 - p) ** (pairs - k)
        for k in range(pairs + 1)
        if k > pairs / 2 and sign_test(k, pairs - k) <= alpha
    )


@pytest.mark.parametrize(("wins", "losses"), [(4, 0), (5, 3), (12, 6), (7, 2)])
def test_the_pairs_that_are_said_to_be_needed_would_decide(wins, losses):
    outcome = Preference(wins, losses, 0, 0, ("alice",), wins + losses)
    needed, share = outcome.pairs_needed(0.05), (wins + 1) / (wins + losses + 2)
    # Noether's size is an approximation: within a few points of the 80 % that it aims at.
    assert 0.72 <= power(needed, share, 0.05) <= 0.9


def test_ties_come_on_top_of_the_pairs_that_are_needed():
    few, many = (Preference(6, 2, ties, 0, ("a",), 8).pairs_needed(0.05) for ties in (0, 8))
    assert abs(many - 2 * few) <= 1


@pytest.mark.parametrize(
    ("wins", "losses", "preferred"),
    [(4, 0, "neither"), (6, 0, "tuned"), (0, 6, "base"), (7, 1, "neither"), (8, 1, "tuned")],
)
def test_the_level_decides_what_is_preferred(wins, losses, preferred):
    assert Preference(wins, losses, 0, 0, ("a",), 9).preferred(0.05, "base") == preferred


# Published examples, an observer a row and a unit a column; a dot where none was given.
PUBLISHED = {
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers
    # with missing values.
    0.743: ("123321412..", "1233224125.", ".3332342251", "12332441251"),
    # Wikipedia, "Krippendorff's alpha", the computational example.
    0.691: (".....34121133.3", "1.213343.......", "..21344.21133.4"),
}


@pytest.mark.parametrize(("alpha", "observers"), PUBLISHED.items())
def test_published_values(alpha, observers):
    columns = zip(*observers, strict=True)
    units = [[value for value in column if value != "."] for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(alpha, abs=5e-4)


UNITS = st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=8)


@given(UNITS)
def test_the_definition(units):
    """One minus the observed disagreement over the one that is expected by chance."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    expected = [a != b for a, b in combinations(values, 2)]
    if not any(expected):
        assert krippendorff_alpha(units) is None
        return
    observed = sum(
        len(unit) / len(values) * _mean([a != b for a, b in combinations(unit, 2)])
        for unit in units
    )
    assert krippendorff_alpha(units) == pytest.approx(1 - observed / _mean(expected))


def _mean(flags):
    return sum(flags) / len(flags)


def test_what_nobody_could_have_disagreed_on_has_no_alpha():
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
