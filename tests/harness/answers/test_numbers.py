import pytest

from tuneline.harness.answers.numbers import final_number, same_number, states_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 16 - 7 = <<16-7=9>>9 eggs.\n#### 18", 18),
        ("The answer is $1,234.50.", 1234.5),
        ("#### 5 apples, of 7", 5),
        ("72%", 72),
        ("from 3 to -4", -4),
        ("10-4", 4),
        ("\u22122.5", -2.5),
        ("1.5e3", 1500),
        ("model v2", None),
        ("none", None),
        ("####", None),
    ],
)
def test_the_final_number_is_found(text, number):
    assert final_number(text) == number


def test_a_number_is_the_same_within_the_tolerance():
    assert same_number("about 100.5", "#### 100", 0.01)
    assert not same_number("about 101.5", "#### 100", 0.01)
    assert not same_number("98.5", "100", 0.01)
    assert same_number("#### 1,000", "1000", 0.0)
    assert not same_number("0.001", "0", 0.01)
    assert not same_number("none", "3", 1.0)


def test_an_answer_states_a_number_alone_or_behind_the_mark():
    assert all(map(states_number, ["42", " $3.50 ", "-7%", "Reasons.\n#### 12"]))
    assert not any(map(states_number, ["42 apples", "call 555 for 3", "", "#### none"]))
