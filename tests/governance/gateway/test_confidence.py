"""The threshold: set by the right answers, measured on the wrong ones, or not set."""

import random

import pytest

from tuneline.governance.gateway.confidence import find_threshold

TARGET = {"caught_share": 0.5, "false_alarm_share": 0.1}


def answers(right: int, wrong: int, gap: float, seed: int = 1) -> tuple[list[float], list[bool]]:
    """Confidences of right answers around -1, of wrong ones `gap` below."""
    draw = random.Random(seed)
    values = [draw.gauss(-1.0, 0.2) for _ in range(right)]
    values += [draw.gauss(-1.0 - gap, 0.2) for _ in range(wrong)]
    return values, [True] * right + [False] * wrong


def test_a_confidence_that_tells_wrong_from_right_gives_a_threshold():
    values, right = answers(190, 40, gap=0.3)
    found = find_threshold(values, right, **TARGET)
    assert found.value is not None
    below = [value < found.value for value in values]
    # The 19th least sure of 190 right answers: 18 lie below it.
    assert sum(below[:190]) == 18
    assert found.false_alarms.value == pytest.approx(19 / 191)
    assert found.caught.value == sum(below[190:]) / 40
    assert found.caught.lower < found.caught.value < found.caught.upper


def test_a_confidence_that_says_nothing_or_may_be_chance_gives_none():
    found = find_threshold(*answers(190, 40, gap=0.0), **TARGET)
    assert (found.value, found.caught is not None) == (None, True)
    assert "0.5 were to be caught" in found.reason
    values = [-1.0 - 0.01 * number for number in range(20)] + [-5.0, -0.5, -0.5, -0.5, -0.5]
    right = [True] * 20 + [False] * 5
    found = find_threshold(values, right, caught_share=0.2, false_alarm_share=0.1)
    assert found.value is None
    assert "chance" in found.reason
    found = find_threshold([0.0] * 50 + [-1.0] * 10, [True] * 50 + [False] * 10, **TARGET)
    assert found.value is None
    assert "wholly sure" in found.reason


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        (100, 0, "none of 100 answers was wrong"),
        (100, 4, "only 4 of 104 answers were wrong, and 5 are needed"),
        (8, 20, "only 8 answers were right, and 9 are needed"),
        (0, 0, "no log-probabilities"),
    ],
)
def test_too_few_rows_say_so(right, wrong, words):
    found = find_threshold(*answers(right, wrong, gap=0.6), **TARGET)
    assert found.value is None
    assert words in found.reason


def test_the_cost_holds_for_answers_that_were_not_seen():
    """Over many calibrations the mean share of further right answers below is the stated one."""
    below = stated = 0.0
    rounds = 400
    for seed in range(rounds):
        values, right = answers(60, 20, gap=0.8, seed=seed)
        found = find_threshold(values, right, **TARGET)
        stated += found.false_alarms.value
        fresh, _ = answers(200, 0, gap=0.0, seed=10_000 + seed)
        limit = sorted(values[:60])[5]
        assert found.value == limit
        below += sum(value < limit for value in fresh) / len(fresh)
    # The mean of 400 draws has a standard error of 0.002.
    assert below / rounds == pytest.approx(stated / rounds, abs=0.01)
    assert stated / rounds <= TARGET["false_alarm_share"]
