"""Find the numbers of a turn by what the conversation is about, where no word names them.

Two things make a number of few digits an identifier: the assistant asked for something that is no
quantity ("what does it say at the top?"), or the same conversation holds another identifier. What
else has digits in such a turn is a quantity, price, date, time or version, and these are explained
by their own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tuneline.data.pii.candidates import Candidate, candidates_in, key_of
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.dialogue import OPEN_TURNS
from tuneline.data.pii.naming import BEFORE, SENTENCE_END, nearest
from tuneline.data.pii.numbers import by_shape, is_bare, is_quantity, is_round
from tuneline.data.pii.stretches import Stretch, stretches, with_letters
from tuneline.data.pii.topics import ENTITY_OF, asks, goes_on, topics
from tuneline.data.tables.rows import Message

# Longer turns tell a story, with numbers of other things.
MOST_WORDS = 14
_LEAST = 4
# Groups that follow each other without a topic are one number if they have as many digits.
_LEAST_JOINED = 6
# A digit after the other is no list of quantities.
_LEAST_SINGLE = 3
# At the beginning of a sentence "is" asks ("is B-46278 on its way?").
_STATED = re.compile(
    r"(?:(?<=\w )(?:is|was|are)|\b(?:its|it's|it’s)|[\w ][=:])\W{1,3}$", re.IGNORECASE
)
_QUANTITY_ASKED = Caseless(
    r"\b(?:how (?:many|much|long|far|old|tall|big|often|fast|heavy|wide|high|deep|late|soon)|"
    r"amounts?|prices?|costs?|sizes?|scores?|readings?|years?|weigh\w*|heights?|incomes?|"
    r"salar\w+|quantit\w+|models?|versions?|errors?|builds?|times?|dates?|when|turnover|tax code|"
    r"distances?|limits?|totals?|budgets?|balances?|results?|answers?|calculat\w+|sums?|"
    r"percent\w*|rates?|pages?|mileage|miles|speeds?|temperatures?|doses?|pressure|pulse|course|"
    r"parts?|products?|chapters?|populations?|worth|spend\w*|paid|pay|owed?|charged?|refund\w*|"
    r"rooms?|seats?|flights?|trains?|buses|channel|frequency|cost cent\w+|company|orders?|"
    r"invoices?|tracking|percentage|equals?|solve|compute|numbers? (?:of|between)|pick a number|"
    r"guess|expir\w*|valid)\b"
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_NOUGHT_FIRST = re.compile(r"(?<![\d.])0\d")
_LETTERS = re.compile(r"[^\W\d_]")
# Expiry dates and amounts beside what was found.
_SUM = re.compile(r"\d ?[x×*+=] ?\d|= ?\d|\d\.\d")
_APART = re.compile(r"\b(?:exp(?:iry|ires|iration|\.)?|valid|paid|cost|total|for|about)\W*$", re.I)


class Span(NamedTuple):
    """Characters start to end of a text."""

    start: int
    end: int


def asks_for_quantity(messages: Sequence[Message], turn: int) -> bool:
    """Return True if the turn before asks how much, which version, when and the like."""
    return turn > 0 and _QUANTITY_ASKED.found_in(messages[turn - 1]["content"])


def follows_open_question(messages: Sequence[Message], turn: int) -> bool:
    """Return True if a turn of the user comes after one that may ask for an identifier.

    Args:
        messages: turns of a row.
        turn: index of a turn.
    """
    if turn == 0 or messages[turn]["role"] != "user":
        return False
    for at in range(turn - 1, max(-1, turn - 2 * OPEN_TURNS), -2):
        text = messages[at]["content"]
        if messages[at]["role"] != "assistant" or len(text.split()) > MOST_WORDS:
            return False
        if not goes_on(text):
            return asks(text) and not asks_for_quantity(messages, at + 1)
    return False


def open_answers(
    text: str, uncounted: frozenset[str], *, known: bool
) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that a turn gives without a word for them: start, end and entity.

    Args:
        text: a turn of the user after an open question, or one beside other identifiers.
        uncounted: topics whose numbers are the business's own.
        known: True if the conversation holds another identifier, so that parts count too.
    """
    words = len(text.split())
    found = candidates_in(text)
    broken = [Span(*with_letters(text, s.start, s.end)) for s in stretches(text)]
    bare = is_bare(text, sorted({*broken, *(Span(c.start, c.end) for c in found)}))
    if bare or (known and words <= MOST_WORDS):
        yield from _joined(text, bare=bare)
    if words > MOST_WORDS and not known:
        return
    yield from _free_numbers(text, found, uncounted)


def stated_numbers(text: str, uncounted: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that a turn says something to be: start, end and entity.

    What is a number of four digits or more, and no quantity, date or time, is somebody's ("the
    front door is 2580").

    Args:
        text: a turn of the user.
        uncounted: topics whose numbers are the business's own.
    """
    found = [c for c in candidates_in(text) if _STATED.search(text, max(0, c.start - 64), c.start)]
    if found and not _QUANTITY_ASKED.found_in(text):
        yield from _free_numbers(text, found, uncounted)


def _free_numbers(
    text: str, candidates: Sequence[Candidate], uncounted: frozenset[str]
) -> Iterator[tuple[int, int, str]]:
    for candidate in candidates:
        if _is_free(text, candidate) and nearest(text, candidate)[0] not in uncounted:
            start, end = candidate.start, candidate.end
            if not candidate.letters:
                start, end = with_letters(text, start, end)
            bare = end - start == candidate.end - candidate.start
            yield start, end, by_shape(candidate) if bare else "ID_NUMBER"


def _is_free(text: str, candidate: Candidate) -> bool:
    """Return True if no word makes a quantity or a date of a candidate."""
    before = text[max(0, candidate.start - BEFORE) : candidate.start]
    if is_quantity(before, candidate, adjacent=False) or is_round(candidate):
        return False
    if _YEAR.fullmatch(candidate.value) or _APART.search(before):
        return False
    if candidate.letters:
        # A word with a number behind it is a product or a version.
        letters = len(_LETTERS.findall(candidate.value))
        return len(key_of(candidate.value)) >= _LEAST + 1 and candidate.digits >= min(3, letters)
    return candidate.digits >= _LEAST


def _joined(text: str, *, bare: bool) -> Iterator[tuple[int, int, str]]:
    """Yield groups of digits that follow each other and are no list of quantities."""
    if _SUM.search(text):
        return
    for stretch in stretches(text):
        said = text[stretch.start : stretch.end]
        single = re.fullmatch(r"\d(?: \d)+", said) is not None
        least = _LEAST_SINGLE if single else _LEAST if bare else _LEAST_JOINED
        if stretch.groups < 2 or stretch.digits < least:
            continue
        if bare or single or _NOUGHT_FIRST.search(said):
            start, end = with_letters(text, stretch.start, stretch.end)
            phone = 10 <= stretch.digits <= 12 and end - start == stretch.end - stretch.start
            yield start, end, "PHONE_NUMBER" if phone else "ID_NUMBER"


def named_stretches(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the broken-up numbers after a word for them, in the same sentence.

    A value that is corrected while it is said is found whole ("card is 4 9 0 1 um 3 3 8 wait
    3 3 7 0 then 5 5 1 2").

    Args:
        text: any text of a conversation.
    """
    least = min(_BROKEN_UP.values())
    found = [s for s in stretches(text) if s.groups > 1 and s.digits >= least]
    spoken = topics(text) if found else ()
    for at, topic in enumerate(spoken):
        if topic.name not in _BROKEN_UP:
            continue
        stop = next((t.start for t in spoken[at + 1 :] if t.name in ENTITY_OF), len(text))
        for stretch in found:
            near = topic.end <= stretch.start < stop and stretch.start - topic.end <= BEFORE
            if not near or SENTENCE_END.search(text[topic.end : stretch.start]):
                continue
            if stretch.digits >= _BROKEN_UP[topic.name] and not _counts(text, stretch):
                start, end = with_letters(text, stretch.start, stretch.end)
                yield start, end, ENTITY_OF[topic.name]


# Fewest digits of a broken-up number after the word for it.
_BROKEN_UP = {"ssn": 4, "card": 6, "phone": 7, "account": 6, "secret": 4}


def _counts(text: str, stretch: Stretch) -> bool:
    """Return True if a stretch reads as an amount or a list ("cards 12, 14 and 16")."""
    said = text[stretch.start : stretch.end]
    groups = re.findall(r"\d+", said)
    lengths = {len(group) for group in groups}
    listed = (
        len(groups) > 1 and "," in said and max(lengths) <= 2 and not _NOUGHT_FIRST.search(said)
    )
    return listed and lengths != {1}
