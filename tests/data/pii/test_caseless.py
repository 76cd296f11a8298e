import re

import pytest

from tuneline.data.pii.caseless import Caseless

PATTERN = r"\b(?:phone|fax)(?! machine)\b|(?P<year>(?:19|20)\d\d)"
TEXTS = [
    "",
    "Phone me, FAX machine or fax",
    "in 1999 my phones",
    "ſex İ PHONE İ fax 2024",  # the first and third letter change their length in lower case
]


@pytest.mark.parametrize("text", TEXTS)
def test_it_finds_what_the_flag_finds(text):
    slow = re.compile(PATTERN, re.IGNORECASE)
    fast = Caseless(PATTERN)
    found = [(m.span(), m.lastgroup) for m in slow.finditer(text)]
    assert [(m.span(), m.lastgroup) for m in fast.finditer(text)] == found
    assert fast.found_in(text) == bool(found)


@pytest.mark.parametrize(
    ("text", "covered"),
    [("", True), ("Ok, THANKS", True), ("ok thanks sam", False), ("okay", False), ("ſo ok", False)],
)
def test_a_text_of_nothing_but_matches(text, covered):
    assert Caseless(r"\b(?:ok|thanks)\b|[\W]").covers(text) is covered


def test_a_pattern_that_no_lower_case_text_holds_is_refused():
    Caseless(r"(?P<a>\Wx\B)")
    with pytest.raises(ValueError, match="upper-case"):
        Caseless(r"\bPIN\b")
