"""Find the plates of vehicles by the words before them ("registration LK21 VHT")."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.matching import Span, any_case, spans

_HINTS = ("plate", "reg", "vrm", "tag")
_CUE = any_case(
    r"\b(?:plates?|registrations?|reg(?:o|istered)?|vrm|tag)\b\.?"
    r"(?: (?:number|no|nr)\b\.?)?[\s:#]{1,3}"
)
_WORD = re.compile(r"([a-z']+) ", re.IGNORECASE)
# Words that may stand between the word for a plate and its signs.
_AWAY = 6
# Britain since 2001: area, half-year, three letters.
_SHAPES = re.compile(
    r"(?<![\w-])(?:[A-Z]{2}(?:0[1-9]|[1-7]\d) ?[A-HJ-PR-Z]{3}|"
    # Before; Kenya and Nigeria; India; Ireland.
    r"[A-HJ-NPR-TV-Y]\d{1,3} [A-HJ-PR-Z]{3}|[A-Z]{3}[ -]?\d{3}[ -]?[A-Z]{1,2}|"
    r"[A-Z]{2}[ -]?\d{1,2}[ -]?[A-Z]{1,2}[ -]?\d{4}|\d{2,3}-[A-Z]{1,2}-\d{1,6}|"
    # Turkey.
    r"\d{2} [A-Z]{1,3} \d{2,5})(?![\w-])"
)
_GROUPS = any_case(r"[a-z\d]{1,5}(?:[ -][a-z\d]{1,5}){0,2}(?![\w-])")
_GROUP = re.compile(r"[a-z\d]+", re.IGNORECASE)
_SIGNS = range(4, 9)
# "Half a plate": some of its signs.
_PART = range(3, 9)
_SHORT_WORDS = frozenset(
    "a am an and at but by can car did do due for get got had has he her his i if in is it its me "
    "my new no not now of off ok old on one or our out pm see she so the to up us was we who "
    "you".split()
)
_LINKS = frozenset("is was on says reads it its the a of".split())


def plates(text: str, lowered: str) -> Iterator[Span]:
    """Yield the plates of vehicles: characters start to end.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    if text != lowered:
        yield from spans(text, _SHAPES)
    if not any(hint in lowered for hint in _HINTS):
        return
    for cue in _CUE.finditer(text):
        start, beside = cue.end(), True
        for _ in range(_AWAY):
            groups = _GROUPS.match(text, start)
            end = _plate_end(groups, one=not beside) if groups else None
            if end is not None:
                yield start, end
                break
            word = _WORD.match(text, start)
            if word is None:
                break
            start, beside = word.end(), beside and word[1].casefold() in _LINKS


def _plate_end(groups: re.Match[str], *, one: bool) -> int | None:
    """Return the end of the longest run of groups that reads as a plate, None if none does.

    Args:
        groups: up to three groups of letters and digits.
        one: True if the first group alone must show it.
    """
    ends = [group.end() + groups.start() for group in _GROUP.finditer(groups[0])]
    for end in ends[:1] if one else reversed(ends):
        said = _GROUP.findall(groups.string[groups.start() : end])
        whole = "".join(said)
        # A word is none of its groups ("plate 4471 is").
        wordy = any(
            group.isalpha()
            and (len(group) > (4 if group.isupper() else 3) or group.casefold() in _SHORT_WORDS)
            for group in said
        )
        mixed = re.search(r"\d", whole) and re.search(r"[^\W\d]", whole)
        lower = len(said) == 1 or not wordy
        if mixed and lower and len(whole) in (_PART if len(said) == 1 else _SIGNS):
            return end
    return None
