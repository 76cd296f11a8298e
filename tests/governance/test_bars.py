"""The bars of a page: where a value lies to its limit, its interval and the last release."""

import pytest

from tuneline.evidence import measure
from tuneline.governance.pages.checklist import bar_of

LOW, HIGH = 6.0, 94.0


@pytest.mark.parametrize(
    ("m", "values", "before", "drawn"),
    [
        # From 0 to the limit; the value in the middle.
        (measure("x", 2, "", "<=", 4), {}, None, (50.0, HIGH, "below", None, None)),
        (measure("x", 2, "", ">=", 4), {}, 1, (50.0, HIGH, "above", None, 28.0)),
        # Below 0 the line begins with the least.
        (measure("x", -2, "", ">", 0), {}, None, (LOW, HIGH, "above", None, None)),
        # A bound is drawn with the value that it bounds.
        (
            measure("x_lower", 1, "", ">", 0),
            {"x": 2.0, "x_lower": 1.0, "x_upper": 4.0},
            None,
            (50.0, LOW, "above", (28.0, HIGH), None),
        ),
        (
            measure("x", 1, "", "<=", 1.98, noise=0.5),
            {"x": 1.0},
            None,
            (50.4, 94.0, "below", (6.9, 94.0), None),
        ),
    ],
)
def test_positions(m, values, before, drawn):
    found = bar_of(m, values, before)
    assert [found.value, found.limit, found.before] == [
        None if at is None else pytest.approx(at, abs=0.2) for at in (drawn[0], drawn[1], drawn[4])
    ]
    assert found.side == drawn[2]
    assert found.interval == (drawn[3] and pytest.approx(drawn[3], abs=0.2))


@pytest.mark.parametrize(
    "m",
    [
        measure("x", 0, "", "<=", 0),
        measure("x", "text", "", "==", "text"),
        measure("x", True, "", "==", True),
        measure("x", float("nan"), "", "<=", 1),
        measure("x", 1e308, "", ">=", -1e308),
        measure("x", 5, ""),
    ],
)
def test_what_can_not_be_compared_has_none(m):
    assert bar_of(m, {}, None) is None
