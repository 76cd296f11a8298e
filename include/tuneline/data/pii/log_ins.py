"""Find passwords and names of accounts where a conversation is about logging in.

There a word with a digit or a sign inside ("Bruno2014", "Larkhill#5") is what somebody typed, with
or without a word that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.conversations.answers import answer_object
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
_MIXED = re.compile(
    r"[A-Za-z]\d|\d(?!(?:st|nd|rd|th|[ap]m|x|s|k)\b)[A-Za-z]|[A-Za-z][#$%&*+=^~_!?]+\w|"
    r"[#$%&*+=^~_!?][A-Za-z]",
    re.ASCII,
)
_SIGN = re.compile(r"[#$%&*+=^~_!?]\w")
_WORD = re.compile(r"[^\s\"“”()<>]+")
_LETTER, _DIGIT = re.compile(r"[a-z]", re.IGNORECASE), re.compile(r"\d")
_SIGN_INSIDE = re.compile(r"\w[#$%&*+=^~_!?]+(?=\w)|[#$%&*^~]\w")
# A code after one of these is the business's or a product's.
_CODE_OF = re.compile(
    r"\b(?:errors?|err|updates?|patch|versions?|build|model|tickets?|case|orders?|invoice|tracking|"
    r"serial|ref(?:erence)?|booking|sku|part|product|firmware|driver|hash|commit)\W{1,2}"
    r"(?:(?:code|number|no|id|is|was|says)\W{1,2}){0,2}$",
    re.IGNORECASE,
)
# What only looks like it: amounts, ordinals, sizes, addresses, files, names of versions.
_PLAIN = re.compile(
    r"[$€£₹]\S+|https?:\S*|www\.\S*|\S*@\S+|[\w-]+(?:\.[a-z]{2,4})+|\d+[a-z]{1,5}|\d+-[a-z-]+|"
    r"\d+x\d+|[a-z]{1,3}\d{1,3}|[a-z]+-\d{1,2}|(?:windows|win|android|ios|iphone|ipad|galaxy|covid|"
    r"office|python|version|build|step|page|level|plan|option|error|version)-?\d+\w{0,4}|"
    r"0x[\da-f]+|\w+/\w+|[a-z]+&[a-z]+|[a-z]+'[a-z]+|[a-z]+(?:-[a-z]+)*",
    re.IGNORECASE,
)
_BRACKET = re.compile(r"[\[\]{}]")
_LEAST, _MOST = 5, 40
# Longer texts have code, links and markdown in them.
_LONGEST = 60


def about_log_ins(messages: Sequence[Message]) -> list[bool]:
    """Return for each turn whether it or one near it speaks of logging in."""
    if not any(m["role"] == "user" and _is_mixed(m["content"]) for m in messages):
        return [False] * len(messages)
    spoken = [_speaks(message) for message in messages]
    return [any(spoken[max(0, at - _REACH) : at + _REACH]) for at in range(len(messages))]


def _is_mixed(text: str) -> bool:
    """Return True if a text can hold a word that is made up of several sorts of signs."""
    # Looking for one sort of sign is faster, and most texts have none.
    some = _DIGIT.search(text) or _SIGN.search(text)
    return some is not None and _MIXED.search(text) is not None


def _speaks(message: Message) -> bool:
    """Return True if a turn speaks of logging in; the label of a classified row is no speech."""
    text = message["content"]
    if not _ABOUT.found_in(text):
        return False
    return message["role"] != "assistant" or answer_object(text) is None


def typed_secrets(text: str) -> Iterator[Span]:
    """Yield the words of a text that are made up of letters with digits or signs.

    Args:
        text: a turn near one that speaks of logging in.
    """
    if text.count(" ") > _LONGEST:
        return
    for match in _WORD.finditer(text):
        word = match[0].rstrip(".,;:?")
        if not _LEAST <= len(word) <= _MOST or _PLAIN.fullmatch(word):
            continue
        # Sums have no letters, and what stands in brackets is left to be filled in.
        if _LETTER.search(word) is None or _BRACKET.search(word):
            continue
        mixed = _DIGIT.search(word) and not re.search(r"[,:]", word)
        if not (mixed or _SIGN_INSIDE.search(word)):
            continue
        if _CODE_OF.search(text, max(0, match.start() - 64), match.start()) is None:
            yield match.start(), match.start() + len(word)
