import re
from random import Random

import pytest

from tuneline.data.pii.caseless import Caseless, CaselessWords

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


WORDS = (
    r"(?<![\w@.])(?:(?:pass ?(?:word|code)s?|p\.?i\.?n\.?|pass(?= (?:is|:)))(?!\w)"
    r"|(?P<many>(?:credit |debit )?cards?(?: no| number)?(?!\w)|confirmation(?=\W*$)|"
    r"[346] digits?\b))"
)


@pytest.mark.parametrize("seed", range(20))
def test_trying_only_words_that_can_begin_a_match_finds_the_same(seed):
    rng = Random(seed)
    parts = (
        "pass word passcode PIN p.i.n is : credit cards no number 4 digits confirmation x".split()
    )
    plain, fast = Caseless(WORDS), CaselessWords(WORDS)
    for _ in range(300):
        chosen = [rng.choice(parts) + rng.choice(" - .,@é") for _ in range(rng.randint(0, 9))]
        text = "".join(chosen).strip()
        found = [(m.span(), m.lastgroup) for m in plain.finditer(text)]
        assert [(m.span(), m.lastgroup) for m in fast.finditer(text)] == found, text


def test_what_is_remembered_does_not_grow_with_numbers():
    fast = CaselessWords(WORDS)
    assert not [*fast.finditer(" ".join(str(10**9 + number) for number in range(30_000)))]
    assert len(fast._begins) < 100
