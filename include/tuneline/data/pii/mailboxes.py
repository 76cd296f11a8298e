"""Read e-mail addresses that are told in words, from the sign in the middle outwards.

People say an address letter by letter, with "as in tom", "underscore", "the number six" and pauses.
Whatever the parts are, there is a word for the sign and a host after it; to the left of the sign
every word belongs to the mailbox until one that speaks about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.matching import Span

_TOKEN = re.compile(r"[^\s,;]+")
# No mailbox begins with the sign, so something stands before it.
_HINT = re.compile(r"[ (\[{<*]at\W", re.IGNORECASE)
_SIGN = re.compile(r"[(\[{<*\"']?(?:at|@|at-?sign)[)\]}>*\"']?", re.IGNORECASE)
_SIGN_WORD = frozenset({"sign", "symbol"})
_DOT = frozenset({"dot", ".", "point", "period", "(dot)", "[dot]", "{dot}"})
_LINKS = _DOT | {"underscore", "under", "score", "dash", "hyphen", "minus", "plus", "_", "-"}
# Words about how a mailbox is written, inside of it.
_ABOUT = frozenset(
    "the number then as in for like initial first last double triple lowercase uppercase capital "
    "lower upper case small big all one word letter and with".split()
)
_NUMBERS = frozenset(
    "zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety".split()
)
_PROVIDERS = re.compile(
    r"(?:g ?mail|googlemail|google|yahoo|ymail|hotmail|outlook|icloud|aol|proton(?:mail)?|gmx|live|"
    r"msn|me|mac|comcast|verizon|btinternet|bigpond|rediffmail|fastmail|zoho|yandex|web)",
    re.IGNORECASE,
)
_END = re.compile(
    r"(?:com|org|net|edu|gov|info|biz|io|dev|app|tech|online|shop|email|[a-z]{2})[.!?]?",
    re.IGNORECASE,
)
# Without any of these there is a host only where one was asked for.
_HOST_HINT = re.compile(
    rf"\w\.\w|(?<!\w)(?:[(\[{{]?dot[)\]}}]?|\.|point|period|{_PROVIDERS.pattern})(?!\w)",
    re.IGNORECASE,
)
# Not the host of anything ("at home", "at the desk").
_NO_HOST = FILLER | frozenset(
    "noon night home work school lunch least most once all first last present checkout some any "
    "every each that this these those a an half quarter dawn dusk sunset sunrise midday "
    "midnight".split()
)
# Words before a mailbox that it does not begin with.
_LEAD = frozenset("send email mail write contact reach cc forward everything both is to at".split())
_MOST_LEFT, _MOST_PLAIN = 40, 2


def told_mailboxes(text: str, *, asked: bool) -> Iterator[Span]:
    """Yield the e-mail addresses of a text that are told in words: characters start to end.

    Args:
        text: a turn.
        asked: True if the turn before asked for one; then the host may be any word.
    """
    if not ("@" in text or _HINT.search(text)) or not (asked or _HOST_HINT.search(text)):
        return
    tokens = list(_TOKEN.finditer(text))
    words = [token[0].casefold() for token in tokens]
    for at, word in enumerate(words):
        if not _SIGN.fullmatch(word):
            continue
        host = at + 1 + (at + 1 < len(words) and words[at + 1] in _SIGN_WORD)
        end = _host_end(words, host, asked=asked)
        if end is None:
            continue
        first = _box_start(words, at)
        if first < at and (asked or _is_told(words[first:at], words[host:end])):
            stop = tokens[end - 1].end() - (text[tokens[end - 1].end() - 1] in ".!?")
            yield tokens[first].start(), stop


def _is_told(box: Sequence[str], host: Sequence[str]) -> bool:
    """Return True if a mailbox has parts that are no words of a sentence, or its host an end."""
    parts = any(word in _LINKS or len(word) == 1 or word in _NUMBERS for word in box)
    return parts or any(re.search(r"[\d._]", word) for word in box) or not _DOT.isdisjoint(host)


def _host_end(words: Sequence[str], start: int, *, asked: bool) -> int | None:
    """Return the index after the last word of a host, None if there is no host."""
    at = start + 1 if start < len(words) and words[start] in ("the", "a") and asked else start
    if at >= len(words) or words[at] in _NUMBERS:
        return None
    if words[at] in _NO_HOST and not _PROVIDERS.fullmatch(words[at]):
        return None
    known = _PROVIDERS.fullmatch(words[at]) is not None
    dotted = re.fullmatch(r"[\w-]+(?:\.[\w-]+)+", words[at]) is not None
    end = at + 1
    if end + 1 < len(words) and words[end] not in _LINKS and words[end + 1] in _DOT:
        # Two words of a host ("talk talk dot net").
        end += 1
    while end + 1 < len(words) and words[end] in _LINKS and re.match(r"\w", words[end + 1]):
        dotted = dotted or words[end] in _DOT
        end += 2
    if known and end < len(words) and re.fullmatch(r"com[.!?]?", words[end]):
        return end + 1
    ended = dotted and _END.fullmatch(words[end - 1].rpartition(".")[2]) is not None
    return end if known or ended or (asked and at == start) else None


def _box_start(words: Sequence[str], sign: int) -> int:
    """Return the index of the first word of the mailbox before a sign."""
    first = at = sign
    plain = 0
    while at > 0 and sign - at < _MOST_LEFT:
        word = words[at - 1]
        linked = at < sign and words[at] in _LINKS
        short = len(word.strip(".")) == 1 or word.isdigit() or word in _NUMBERS or word in _LINKS
        spelled = at > 1 and words[at - 2] in ("in", "for", "like")
        if short or spelled or (linked and word not in FILLER):
            at -= 1
            # "I" begins a sentence, and "to a" is none of a mailbox.
            first = at if word not in ("i", "a") or at + 1 == first or linked else first
        elif word in _ABOUT:
            at -= 1
        elif word in FILLER or word in _LEAD or plain >= _MOST_PLAIN:
            break
        else:
            plain += 1
            at -= 1
            first = at
    return first
