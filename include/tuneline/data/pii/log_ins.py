"""Find passwords and names of accounts where a conversation is about logging in.

There a word with a digit or a sign inside ("Bruno2014", "Larkhill#5") is what somebody typed, with
or without a word that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.matching import Span
from tuneline.data.tables.rows import Message

# Turns around one that speaks of logging in.
_REACH = 2
_ABOUT = Caseless(
    r"\b(?:pas?s?w\w{0,4}|pa?s?sw?rds?|pswr?d|pwd?|pass ?(?:code|phrase|key|word)s?|psk|pass|creds|"
    r"credentials?|user ?names?|log(?:ged|ging)? ?[io]n|logins?|logons?|sign(?:ed|ing)? ?in|"
    r"get(?:ting)? (?:back )?in(?:to)?|locked out|hac?ked|hckd|wi-?fi|router|secret|netflix|"
    r"(?:wont|won't|doesnt|doesn't|didnt|didn't|not) (?:take|accept|like)|"
    r"(?:try|typed?|typing|put in|entered?))\b"
)
# Without any of these no word is made up of several sorts of signs.
_MIXED = re.compile(r"[A-Za-z]\d|\d[A-Za-z]|[#$%&*+=^~_!?.]\w|[a-z][A-Z]|[A-Za-z]-[A-Z]", re.ASCII)
_WORD = re.compile(r"[^\s\"“”()<>]+")
_LETTER, _DIGIT = re.compile(r"[a-z]", re.IGNORECASE), re.compile(r"\d")
_SIGN_INSIDE = re.compile(r"\w[#$%&*+=^~_!?]+(?=\w)|[#$%&*^~]\w")
_CAPITAL_INSIDE = re.compile(r"[a-z][-./]?[A-Z]|[a-z]\d+[a-z]", re.ASCII)
# What only looks like it: amounts, ordinals, sizes, addresses, files, names of versions.
_PLAIN = re.compile(
    r"[$€£₹]\S+|https?:\S*|www\.\S*|\S*@\S+|[\w-]+(?:\.[a-z]{2,4})+|\d+[a-z]{1,5}|\d+-[a-z-]+|"
    r"\d+x\d+|[a-z]{1,3}\d{1,3}|[a-z]+-\d{1,2}|(?:windows|win|android|ios|iphone|ipad|galaxy|covid|"
    r"office|python|version|build|step|page|level|plan|option|error|version)-?\d+\w{0,4}|"
    r"0x[\da-f]+|\w+/\w+|[a-z]+&[a-z]+|[a-z]+'[a-z]+|[a-z]+(?:-[a-z]+)*",
    re.IGNORECASE,
)
_LEAST, _MOST = 5, 40
# Longer texts have code, links and markdown in them.
_LONGEST = 60


def about_log_ins(messages: Sequence[Message]) -> list[bool]:
    """Return for each turn whether it or one near it speaks of logging in."""
    if not any(_MIXED.search(message["content"]) for message in messages):
        return [False] * len(messages)
    spoken = [_ABOUT.found_in(message["content"]) for message in messages]
    return [any(spoken[max(0, at - _REACH) : at + _REACH]) for at in range(len(messages))]


def typed_secrets(text: str) -> Iterator[Span]:
    """Yield the words of a text that are made up of letters with digits, signs or capitals.

    Args:
        text: a turn near one that speaks of logging in.
    """
    if text.count(" ") > _LONGEST:
        return
    for match in _WORD.finditer(text):
        word = match[0].rstrip(".,;:?")
        if not _LEAST <= len(word) <= _MOST or _PLAIN.fullmatch(word):
            continue
        bare = word.rstrip("!")
        mixed = _LETTER.search(bare) and _DIGIT.search(bare) and not re.search(r"[,:]", bare)
        if mixed or _SIGN_INSIDE.search(word) or _CAPITAL_INSIDE.search(bare):
            yield match.start(), match.start() + len(word)
