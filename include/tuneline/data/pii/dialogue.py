"""Follow what the turns of a conversation ask for, and find the values that were said in others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from tuneline.data.pii.hits import Hit
from tuneline.data.pii.topics import accepts, asked, goes_on, last_sentence, meant
from tuneline.data.tables.rows import Message

# Turns that a question stays open without an answer ("hold on, let me look").
OPEN_TURNS = 2
# A shorter number is said again by chance.
LEAST_DIGITS = 4
_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d")
# A user asks for a value in few words ("what's my account number").
MOST_WORDS = 12
# The same is asked about somebody else ("and your husband's?").
_OTHERS = re.compile(
    r"\W*(?:and |what about |how about )(?:yours|his|hers|theirs|mine|"
    r"(?:(?:your|his|her|their|the|my) )?"
    r"(?:[a-z]+ )?[a-z]+(?:'s|s|’s|s'))\W*",
    re.IGNORECASE,
)
_YOURS = re.compile(r"\b(?:what|which|tell|give|send me|read|your|who)", re.IGNORECASE)
_NONE: frozenset[str] = frozenset()
# A name that is a word as well, where somebody is addressed by it ("thank you Rose.").
_ADDRESSED = (
    r"(?:(?<=thank you )|(?<=thanks )|(?<=hi )|(?<=hello )|(?<=dear )|(?<=ok )|(?<=okay )|"
    r"(?<=sorry )|(?<=welcome )|(?<=sure )|(?<=yes )|(?<=morning )|(?<=, )){}(?=\s*(?:[.,!?]|$))"
)
_GAP = r"[ .()-]{0,2}"


def wanted(messages: Sequence[Message]) -> list[frozenset[str]]:
    """Return the topics that each turn is expected to answer."""
    expected: list[frozenset[str]] = []
    open_topics: dict[str, tuple[frozenset[str], int]] = {}
    said = ""
    lasting = _NONE
    for message in messages:
        role, text = message["role"], message["content"]
        topics_open = _NONE
        for other, (names, _) in open_topics.items():
            if other != role:
                topics_open |= names
        # A long turn of the assistant is no answer with a value.
        silent = role == "system" or (role == "assistant" and len(text.split()) > MOST_WORDS)
        expected.append(_NONE if silent else topics_open)
        if role == "system":
            continue
        found = asked(_request(role, text))
        if role == "assistant":
            found = found or meant(text, said)
            if not found and _OTHERS.fullmatch(text):
                found = lasting
            lasting = found or lasting
        said = text
        mine, age = open_topics.get(role, (_NONE, 0))
        if found:
            open_topics[role] = (found, 0)
        elif accepts(text):
            open_topics.pop(role, None)
        elif mine and (goes_on(text) or (age < OPEN_TURNS - 1 and _waits(text))):
            open_topics[role] = (mine, age if goes_on(text) else age + 1)
        else:
            open_topics.pop(role, None)
    return expected


def _waits(text: str) -> bool:
    """Return True if a turn leaves a question open: it asks for nothing else and tells little."""
    return "?" not in text and len(text.split()) <= MOST_WORDS


def _request(role: str, text: str) -> str:
    """Return the part of a turn that can ask the other side for data."""
    if role == "assistant":
        return text
    last = last_sentence(text)
    return last if len(last.split()) <= MOST_WORDS and _YOURS.search(last) else ""


def may_be_said_again(values: Iterable[tuple[str, str]], rest: Sequence[str]) -> bool:
    """Return True if what is left of a row's texts has a word or the digits of one of its values.

    Making the patterns of a row's values takes longer than this, and most rows say each once.

    Args:
        values: entity and text of each value.
        rest: the parts of the texts outside of the values.
    """
    words = set(_WORD.findall(" ".join(rest).casefold()))
    if sum(map(len, _DIGITS.findall(" ".join(rest)))) >= LEAST_DIGITS:
        return True
    return not words.isdisjoint(_WORD.findall(" ".join(value for _, value in values).casefold()))


def repeated_values(
    values: Iterable[tuple[str, str]], is_name: Callable[[str], bool]
) -> Callable[[str], list[Hit]]:
    """Return a finder of further mentions of the values of a row.

    Numbers are found in any grouping, names by each of their parts.

    Args:
        values: entity and text of each value.
        is_name: True for a part of a name that is hardly an ordinary word.
    """
    patterns: dict[str, str] = {}
    for entity, value in values:
        for pattern in _patterns(entity, value, is_name):
            patterns.setdefault(pattern, entity)
    if not patterns:
        return lambda _: []
    ordered = sorted(patterns, key=lambda pattern: (-len(pattern), pattern))
    whole = re.compile(
        r"(?<![\w@])(?:" + "|".join(f"({pattern})" for pattern in ordered) + r")(?![\w@])",
        re.IGNORECASE,
    )

    def find(text: str) -> list[Hit]:
        return [
            Hit(m.start(), m.end(), patterns[ordered[(m.lastindex or 1) - 1]])
            for m in whole.finditer(text)
        ]

    return find


def _patterns(entity: str, value: str, is_name: Callable[[str], bool]) -> Iterable[str]:
    """Yield the patterns of the forms in which a value may be said again."""
    if entity in ("LOCATION", "DATE", "AGE_OVER_89"):
        return
    digits = _DIGITS.findall(value)
    if entity == "PERSON":
        yield _spaced(value)
        parts = [part.strip(".,'’") for part in value.split()]
        yield from (re.escape(p) for p in parts if len(p) > 2 and is_name(p))
        yield from (_ADDRESSED.format(re.escape(p)) for p in parts if len(p) > 2 and not is_name(p))
    elif len(digits) == len(re.sub(r"[\W_]", "", value)):
        if len(digits) >= LEAST_DIGITS:
            yield _GAP.join(digits)
        if len(digits) > 6:
            # People confirm a number by its end.
            yield "".join(digits[-4:])
    elif len(value) > 3:
        yield _spaced(value)


def _spaced(value: str) -> str:
    return r"\s+".join(map(re.escape, value.split()))
