"""Find names by what stands beside them: another name of a list, a number, a date of birth.

"Ayodele, 4/12/2013; Temitope, 9/30/2016" and "folake / 0803 441 9982" name people by their
place, and so does "dana reed 4471".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.cases import lacks_case
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.matching import Span
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.words import is_ordinary

_APART = re.compile(r"[,;&|()\n:]| / |\b(?:and|or|plus)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_][^\W\d_'’-]*(?:['’-][^\W\d_]+)*")
_CONTACTS = frozenset({"PERSON", "PHONE_NUMBER", "EMAIL_ADDRESS", "BIRTH_DATE"})
# Right before one of these stands a name only if lists have each of its words ("dana reed 4471").
_NUMBERS = frozenset({"ID_NUMBER", "PASSWORD", "CREDIT_CARD", "US_SSN", "STREET_ADDRESS"})
_MOST_WORDS = 3
# "C'mon", "hmmm".
_INTERJECTION = re.compile(r"[^dlmo]['’].*|.*(.)\1\1.*|[^aeiouy]+")
# Items away from one that tells.
_REACH = 2


def names_beside(text: str, hits: Sequence[Hit], words: NameWords) -> Iterator[Span]:
    """Yield the names in a list with names, numbers or dates of birth: characters start to end.

    Args:
        text: a turn.
        hits: what was found in it, without overlaps.
        words: names and ordinary words.
    """
    telling = [hit for hit in hits if hit.entity in _CONTACTS or hit.entity in _NUMBERS]
    if not telling:
        return
    items = list(_items(text, telling))
    if len(items) < 2:
        return
    tells = [{h.entity for h in telling if h.start < end and start < h.end} for start, end in items]
    for at, (start, end) in enumerate(items):
        around = tells[max(0, at - _REACH) : at + _REACH + 1]
        beside = tells[at + 1 : at + 2] if at + 1 < len(items) and items[at + 1][0] == end else ()
        contact = any(entities & _CONTACTS for entities in around)
        if tells[at] <= {"PERSON"} and (contact or any(beside)):
            span = _name(text, start, end, words, listed=not contact)
            if span is not None:
                yield span


def _items(text: str, telling: Sequence[Hit]) -> Iterator[Span]:
    """Yield the items of a list: characters start to end. Each hit but a name is an item.

    Args:
        text: a turn.
        telling: hits that can show a name beside them, without overlaps.
    """
    at = 0
    found = ((hit.start, hit.end) for hit in telling if hit.entity != "PERSON")
    signs = [
        (sign.start(), sign.end(), sign.end())
        for sign in _APART.finditer(text)
        if not any(h.start <= sign.start() < h.end for h in telling)
    ]
    for start, end, following in sorted([*signs, *((s, e, s) for s, e in found)]):
        if start >= at:
            yield at, start
            at = following
            if following == start:
                yield start, end
                at = end
    yield at, len(text)


def _name(text: str, start: int, end: int, words: NameWords, *, listed: bool) -> Span | None:
    """Return the span of an item that is nothing but a name.

    Args:
        text: a turn.
        start: first character of the item.
        end: the character after its last.
        words: names and ordinary words.
        listed: True if each word must be one of a list of names.
    """
    said = list(_WORD.finditer(text, start, end))
    rest = _WORD.sub("", text[start:end]).strip(" .-")
    if rest or not 1 <= len(said) <= _MOST_WORDS:
        return None
    if not lacks_case(text) and any(word[0].islower() for word in said):
        # Where others have capitals, so have names.
        return None
    lowered = [word[0].casefold() for word in said]
    if any(
        w in FILLER or w in words.not_people or words.is_everyday(w) or w in words.common
        for w in lowered
    ):
        return None
    if not all(words.is_listed(w) or (not listed and _can_be_unlisted(w, words)) for w in lowered):
        return None
    return said[0].start(), said[-1].end()


def _can_be_unlisted(word: str, words: NameWords) -> bool:
    """Return True if no list has a word, and neither has the dictionary, as it has towns."""
    if _INTERJECTION.fullmatch(word) or not words.is_strange(word):
        return False
    return not is_ordinary(word.title())
