"""Krippendorff's alpha against published values and against its definition."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneline.evaluation.review.agreement import krippendorff_alpha

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
