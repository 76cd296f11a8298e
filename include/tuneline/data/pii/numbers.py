"""Decide which numbers of a text identify somebody: the digit rule.

A number that is no quantity, price, date, time, model or version is an identifier if words near it
say so, if the turn before asked for one, if it is all that a turn holds, or if it has enough digits
for the strength of the profile. A checksum can make its type sure; a mistyped number fails it and
is as personal as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

from tuneline.data.pii.candidates import Candidate, candidates_in, key_of
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.code_parts import whole_code
from tuneline.data.pii.digit_rule import DigitRule, uncounted_by
from tuneline.data.pii.matching import ONES
from tuneline.data.pii.naming import BEFORE, SENTENCE_END, nearest
from tuneline.data.pii.stretches import asked_numbers
from tuneline.data.pii.topics import ENTITY_OF, NUMBER_TOPICS, topics

# Fewest digits of a number by the topic that a word nearby, or a question, gives it.
_LEAST = {
    "secret": 3,
    "code": 3,
    "card": 4,
    "ssn": 4,
    "phone": 4,
    "account": 4,
    "reference": 5,
    "business": 4,
}
# Topics whose numbers have more digits than a year.
_LONG_TOPICS = frozenset({"account", "reference", "business", "phone"})
_YEAR = re.compile(r"(?:19|20)\d\d")
# Fewer digits one by one may be a list.
_READ_OUT = 7
# So few of them are a PIN or one-time code if no list reads like them.
_PIN_DIGITS = range(4, 9)
# A number with this many digits does not belong to an order only because the text mentions one.
_WHOLE = 9


class Spanned(Protocol):
    """Characters start to end of a text."""

    @property
    def start(self) -> int:
        """The first character."""
        ...

    @property
    def end(self) -> int:
        """The character after the last."""
        ...


_GROUP = re.compile(r"\d+")
# Questions that are answered piece by piece, in several turns or with words in between.
_IN_PIECES = frozenset({"ssn", "phone", "card", "secret", "code", "account"})
# A longer one is found by its topic.
_LEAST_PIECE, _LONG_PIECE = 2, 4
_DIGIT_WORDS = f"zero|oh|{ONES}"
_PIECE = re.compile(
    rf"(?<![\w.,:/])(?:\d{{1,3}}(?![\w:/%]|[.,]\d)|(?:{_DIGIT_WORDS})(?!\w))",
    re.IGNORECASE,
)
# "Oh sorry its 8821" begins with no zero, and "last four 8853" with no four.
_SIGH = re.compile(
    rf"oh(?! (?:{_DIGIT_WORDS}|double|triple|dash)\b)(?! \d)(?=\W+\w)|[a-z]+(?= \d{{3}})",
    re.IGNORECASE,
)
# Signs of the code of a booking, of which only one may be a digit.
_LOCATOR = range(5, 8)
# Capitals and digits of a code that is no product's, being so long.
_MIXED, _MIXED_DIGITS = 9, 3
# A promotion's code is a word and an amount ("save15").
_PROMOTION = re.compile(r"[a-z]{4,}\d{1,2}", re.IGNORECASE)
_QUANTITY_BEFORE = re.compile(
    r"\b(?:paid|pay(?:ing)?|costs?|charged?|about|around|over|under|than|only|up to|at least|least|"
    r"most|limit|balance|amount|total|fee|bill|price[ds]?|owed?|worth|spen[dt]|deposit(?:ed)?|"
    r"transfer(?:red)?|withdr[ae]w|sent|send|bought|approximately|nearly|almost|roughly|another|"
    r"every|plus|minus|times|extra|just|maximum|minimum|max|"
    r"min|earn(?:ed)?|refund(?:ed)?|receiv\w+|"
    r"ordered|save|raise|upto|between)\W{1,2}(?:of |is |was |to |by )?$",
    re.IGNORECASE,
)
_YEAR_BEFORE = re.compile(
    r"\b(?:in|since|from|until|till|by|of|year|before|after|during|the|for|around|summer|spring|"
    r"winter|fall|autumn)\W{1,2}$",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\b(?:ends?|ended|ending|finish\w*|terminat\w+|last (?:four|4|three|3|five|5|digits?)"
    r"(?: digits?| numbers?)?)(?: [a-z']{1,9}){0,6}\W{0,3}$",
    re.IGNORECASE,
)
_TOLD_BY_END = re.compile(
    r"\b(?:end|start|begin)(?:s|ed|ing)?(?: (?:in|with|on|is|by))?:? (\d{2,3})(?![\w%]|"
    r"[.,:/]\d| ?(?:days|years|"
    r"weeks|months|hours|minutes|am|pm|dollars|euros|percent)\b)",
    re.IGNORECASE,
)
_CHAIN = re.compile(
    r"\W*(?:\b(?:and|or|not|no|then|sorry|i mean|wait|nope|but)\b\W*)*", re.IGNORECASE
)
# What may stand around a number that is all that a turn holds.
_FILLER = Caseless(
    r"\b(?:its?|it's|it is|is|that is|thats|that's|this|here|you|go|are|yes|yeah|yep|yup|"
    r"sure|ok|okay|oh|uh|um|hm+|so|and|the|my|mine|number|num|no|sorry|i|think|guess|"
    r"mean|believe|have|got|thank|thanks|please|pls|plz|sir|madam|maam|mam|one|sec|"
    r"second|let|me|see|check|found|be|would|should|it|of|course|alright|right|hi|hello|"
    r"hey|well|a|as|for|was|actually|again|correct|says|just|with|ends?|ending|in|on|to|"
    r"digits?|lol|same|name|then|next|dash|space|double|triple|u|ur|try|maybe|try|zero|nought|"
    r"one|two|three|four|five|six|seven|eight|nine|uhm|last|first|area|code|plus|or)\b|\W|\d"
)


def numbers_near_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that words of the same text name: start, end and entity."""
    yield from identifiers(text, frozenset(), None)


def identifiers(
    text: str, wanted: frozenset[str], rule: DigitRule | None
) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that identify somebody: start, end and entity.

    Args:
        text: a turn.
        wanted: topics that the turn before asked for.
        rule: rule for numbers that no word of the text explains; None takes none of them.
    """
    yield from _ends(text)
    candidates = candidates_in(text)
    if rule is not None and wanted & _IN_PIECES:
        yield from _pieces(text, wanted, candidates)
        yield from asked_numbers(text, wanted)
    if not candidates:
        return
    bare = rule is not None and is_bare(text, candidates)
    previous: tuple[int, str] | None = None
    for candidate in candidates:
        entity = _entity(text, candidate, wanted, rule, bare)
        chained = previous is not None and _CHAIN.fullmatch(text, previous[0], candidate.start)
        if entity is None and chained and candidate.digits >= 4 and previous is not None:
            entity = previous[1]
        previous = None
        if entity is not None:
            previous = (candidate.end, entity)
            yield whole_code(text, candidate, entity)


def _pieces(
    text: str, wanted: frozenset[str], candidates: Sequence[Candidate]
) -> Iterator[tuple[int, int, str]]:
    """Yield the few digits that are all that an answer holds ("29", "4 then 4 then 0 7")."""
    spans = [
        piece.span() for piece in _PIECE.finditer(text) if not _SIGH.match(text, piece.start())
    ]
    # A word counts as one digit, and alone it is a word ("one sec").
    digits = sum(end - start if text[start].isdigit() else 1 for start, end in spans)
    if not candidates and digits < _LEAST_PIECE:
        return
    if wanted & _IN_PIECES == {"account"} and any(end - start < 3 for start, end in spans):
        # So short, it may answer the question for any number.
        return
    spans += [(c.start, c.end) for c in candidates if c.digits < _LONG_PIECE]
    if spans and is_bare(text, candidates):
        entity = min(ENTITY_OF[topic] for topic in wanted & _IN_PIECES)
        for start, end in spans:
            yield start, end, entity


def _ends(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the two or three digits by which a number is told ("my account ends in 77")."""
    for match in _TOLD_BY_END.finditer(text):
        named = [topic.name for topic in topics(text[: match.start(1)])]
        known = [name for name in named if name in ("card", "ssn", "phone", "account", "number")]
        if known:
            yield match.start(1), match.end(1), ENTITY_OF.get(known[-1], "ID_NUMBER")


def alike(text: str, lengths: frozenset[int]) -> Iterator[tuple[int, int, str]]:
    """Yield the bare numbers that have as many digits as a PIN of the same conversation.

    Args:
        text: a turn.
        lengths: digits of the PINs and codes that were found in the conversation.
    """
    for candidate in candidates_in(text):
        plain = candidate.value.isdigit() and candidate.digits in lengths
        before = text[max(0, candidate.start - BEFORE) : candidate.start]
        dated = _is_dated(before, candidate) or is_round(candidate)
        if plain and not dated and not is_quantity(before, candidate, adjacent=False):
            yield candidate.start, candidate.end, "PASSWORD"


def _entity(
    text: str,
    candidate: Candidate,
    wanted: frozenset[str],
    rule: DigitRule | None,
    bare: bool,
) -> str | None:
    """Return the entity type of a candidate, None if it identifies nobody."""
    before = text[max(0, candidate.start - BEFORE) : candidate.start]
    near, adjacent = nearest(text, candidate)
    if near == "business" and not adjacent and candidate.digits >= _WHOLE:
        # The word is about something else in the same sentence.
        near = None
    unwanted = near in uncounted_by(rule) or (near == "code" and rule is None)
    if unwanted or is_quantity(before, candidate, adjacent):
        return None
    named = _named(before, candidate, near, adjacent, within=rule is not None)
    if named is not None or rule is None:
        return named
    topics_wanted = (wanted & NUMBER_TOPICS) - uncounted_by(rule)
    if not bare and topics_wanted <= _LONG_TOPICS and _YEAR.fullmatch(candidate.value):
        # "Nissan Frontier 2007" tells no account.
        return None
    if candidate.letters and "card" in topics_wanted and candidate.digits >= _LEAST["card"]:
        # Cards of members and patients have letters.
        return "ID_NUMBER"
    if _fits_any(topics_wanted, candidate) and not _is_dated(before, candidate):
        return _wanted_entity(candidate, topics_wanted)
    other = bool({"address", "birth"} & wanted) and candidate.digits < 9
    free = (bare and candidate.digits >= 4) or _is_free(before, candidate, rule)
    return by_shape(candidate) if free and not other else None


def _named(
    before: str, candidate: Candidate, near: str | None, adjacent: bool, *, within: bool
) -> str | None:
    """Return the type that a word nearby or "ends in" gives a candidate.

    Args:
        before: text before the candidate.
        candidate: a number.
        near: topic that is nearest to it.
        adjacent: True if only links are between the two.
        within: True if any word of the same sentence counts for a long number.
    """
    ends = _ENDS.search(before) is not None and 3 <= candidate.digits <= 6
    weighs = within and SENTENCE_END.search(before) is None and _weighs(candidate)
    if near is not None and (adjacent or ends or weighs) and _fits(near, candidate):
        return ENTITY_OF[near]
    return "ID_NUMBER" if ends and not candidate.letters else None


def _weighs(candidate: Candidate) -> bool:
    """Return True if a candidate is long enough for a name that is some words away."""
    return candidate.digits >= (4 if candidate.letters else 5) and not is_round(candidate)


def is_round(candidate: Candidate) -> bool:
    """Return True if a candidate reads as a round amount."""
    return candidate.value.endswith("000") and candidate.digits <= 7


def _fits(topic: str, candidate: Candidate) -> bool:
    if candidate.letters:
        if topic == "reference":
            return len(key_of(candidate.value)) >= _LEAST[topic]
        if topic == "code" and _PROMOTION.fullmatch(candidate.value):
            return False
        least = 1 if candidate.value.isupper() and len(candidate.value) in _LOCATOR else 2
        named = ("account", "secret", "code", "business", "ssn")
        return topic in named and candidate.digits >= least
    return candidate.digits >= _LEAST[topic]


def _fits_any(wanted: Iterable[str], candidate: Candidate) -> bool:
    return any(_fits(topic, candidate) for topic in wanted)


def is_quantity(before: str, candidate: Candidate, adjacent: bool) -> bool:
    """Return True if the words before a candidate make an amount of it."""
    if candidate.digits > 7 or candidate.letters:
        return False
    return not adjacent and _QUANTITY_BEFORE.search(before) is not None


def _is_dated(before: str, candidate: Candidate) -> bool:
    """Return True if a candidate reads as a year."""
    return bool(_YEAR.fullmatch(candidate.value) and _YEAR_BEFORE.search(before))


def _is_free(before: str, candidate: Candidate, rule: DigitRule) -> bool:
    """Return True if a number that nothing explains is an identifier by strength of profile."""
    if key_of(candidate.value) in rule.frequent or is_round(candidate):
        return False
    if candidate.spoken:
        return candidate.digits >= 4
    groups = _GROUP.findall(candidate.value)
    if candidate.letters:
        mixed = candidate.value.isupper() and candidate.value.isalnum()
        long = len(candidate.value) >= _MIXED and candidate.digits >= _MIXED_DIGITS
        return (mixed and long) or candidate.digits >= rule.least
    if len(groups) > 2 and max(map(len, groups)) <= 2:
        # Digits with spaces between them, as one reads out a number.
        if max(map(len, groups)) > 1:
            return False
        return candidate.digits >= max(rule.least, _READ_OUT) or _is_typed(groups)
    return candidate.digits >= rule.least


def _is_typed(digits: Sequence[str]) -> bool:
    """Return True if single digits hold a nought or one digit twice in a row, as no list does."""
    twice = any(digit == after for digit, after in pairwise(digits))
    return len(digits) in _PIN_DIGITS and ("0" in digits or twice)


def _wanted_entity(candidate: Candidate, wanted: frozenset[str]) -> str:
    shaped = by_shape(candidate)
    entities = sorted({ENTITY_OF[topic] for topic in wanted if _fits(topic, candidate)})
    return shaped if shaped in entities or not entities else entities[0]


def by_shape(candidate: Candidate) -> str:
    """Return the likeliest type of a number of which only the digits are known."""
    if candidate.letters or candidate.digits < 7:
        return "ID_NUMBER"
    groups = [len(group) for group in _GROUP.findall(candidate.value)]
    if candidate.digits == 9:
        return "US_SSN" if groups == [3, 2, 4] else "ID_NUMBER"
    if candidate.digits in (7, 10, 11, 12) or candidate.value.lstrip("(").startswith("+"):
        return "PHONE_NUMBER"
    return "CREDIT_CARD" if 13 <= candidate.digits <= 19 else "ID_NUMBER"


def is_bare(text: str, candidates: Iterable[Spanned]) -> bool:
    """Return True if a text holds nothing but numbers and filler."""
    rest, at = [], 0
    for candidate in candidates:
        rest.append(text[at : candidate.start])
        at = candidate.end
    rest.append(text[at:])
    return _FILLER.covers(" ".join(rest))
