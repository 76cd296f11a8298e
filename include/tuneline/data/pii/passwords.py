"""Find passwords of any words and signs by the words before them ("the passphrase is …")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.pii.matching import ONES, TENS, Span, any_case, spans

_PASSWORD_HINTS = (
    "pas",
    "pw",
    "psw",
    "psk",
    "memorable",
    "secret",
    "security",
    "codew",
    "e word",
    "eword",
    "y word",
    "c word",
    "wifi",
    "wi-fi",
    "creds",
    "credential",
    " it to ",
)
_PASSWORD_CUE = any_case(
    r"\b(?:pass ?(?:word|code|phrase|key)|pswr?d|psk|pass?w(?:or|ro|o|r)?[dt]|pwd?|(?:memorable|"
    r"secret|security|safe) (?:word|phrase|"
    r"answer)|(?:code|safe|key|magic) ?word|"
    r"(?:wi-?fi|network) (?:key|pass|code)|(?:key|code) (?:for|to|of) (?:the |my |"
    r"our )?wi-?fi|wi-?fi(?=:))"
    r"[\"'’”]?(?P<link>(?: (?:i|we|u|you|they|he|she) "
    r"(?:have|use|used|set|chose|typed|put|got|remember|"
    r"gave|sent|told|made|picked|wrote|texted|mailed)(?: (?:me|us|down|up))?)?"
    r"(?: (?:on|for|at|of|when|if) [a-z ]{1,24})?"
    r"(?: (?:i (?:think|guess|believe)|maybe|probably|should be|might be)(?= (?:it|is|was)))?"
    r"(?: ?(?:is|was|it'?s|to ?:|:|=|(?:re)?set to|changed to)(?: now)?)+)?"
    r"[ \"'‘“]+"
)
_PASSWORD_VALUE = any_case(r"([^\s\"“”]+(?:(?<![.,;:!?]) (?!\W)[^\s\"“”]+){0,3})")
_CHANGED = any_case(
    r"\b(?:chang|reset|updat|switch|set)\w*(?: (?:my|the|our|his|her|it|your))?(?: [a-z]{2,8})?"
    r" pass ?(?:word|code|phrase) (?:back )?to [\"'‘“]?(?![\"'‘“])([^\s\"“”]+(?: [a-z]{3,})?)"
)
# A value that is no word, right after: letters with digits or signs among them.
_STRANGE = any_case(
    r"\b(?:pass(?: ?(?:word|code|phrase))?|pass?w(?:or|ro|o|r)?[dt]|pwd?|cred(?:ential)?s)"
    r"(?:(?: (?:i|we|u|you|they|he|she) [a-z]{2,7}(?: (?:me|us))?)?(?: (?:are|is))?:?|"
    r"(?: (?:are|is))? [\w.-]{2,20} ?[/:]) [\"'‘“]?"
    r"(?=\S*[a-z])(?=[^\s.,!?'’]*(?:[\d#$%&*+=@^~_]|[!.-](?=\w)))([^\s\"“”]{5,})"
)
# What else was set or used, if it is no word: letters with digits or signs among them.
_STRANGE_VALUE = (
    r"[\"'‘“]?(?!\d{1,4}(?:st|nd|rd|th|[ap]m)\b)(?=\S*[a-z])"
    r"(?=[^\s.,!?'’]*(?:\d|[#$%&*+=@^~_]|[!.-](?=\w)))([^\s\"“”]{5,})"
)
_SET_TO = any_case(
    r"\b(?:(?:chang|reset|set|updat)\w* it (?:back )?to|pass ?(?:word|code|phrase) (?:has been|was|"
    r"is) (?:set|reset|changed),? (?:and )?(?:it'?s|it is)) " + _STRANGE_VALUE
)
_USED_AS = any_case(
    r"\b(?:us|tr[yi]|type|enter|put|set)\w{0,3} [\"'‘“]?([^\s\"“”’]{3,})[\"'’”]? (?:as|for) "
    r"(?:(?:the|my|a|our) )?(?:[a-z-]{2,8} )?(?:pass ?(?:word|code|phrase)|pwd?|pass)\b"
)
# As one says it aloud ("winter underscore goose all lowercase then forty one").
_SIGN_WORDS = (
    r"(?:under ?score|dash|hyphen|dot|hash(?:tag)?|exclamation (?:point|mark)|dollar sign|at sign|"
    r"question mark|star|asterisk|ampersand|percent sign|plus sign|slash)"
)
_LINK_WORDS = r"(?:then|and|capital|upper ?case|all (?:lower|upper) ?case|all caps|lower ?case)"
_NUMBER_WORDS = rf"(?:zero|oh|{ONES}|{TENS}|\d{{1,4}})"
_SPOKEN = any_case(
    r"\b(?:pass ?(?:word|code|phrase)|pin)(?: (?:is|was|to|will be|should be))+ "
    rf"((?:{_LINK_WORDS} ){{0,2}}[a-z]+(?: (?:{_LINK_WORDS} )*(?:{_SIGN_WORDS}(?: [a-z]+\b)?|"
    rf"{_NUMBER_WORDS}\b|[a-z]\b)|(?: all (?:lower|upper) ?case\b))+)"
)
_BESIDE = any_case(
    r"\buser(?: ?name| ?id)?(?: is|:)? [^\s,]+,?(?: and)? pass(?:word)?(?: is|:)? ([^\s,]{3,})"
)
# The value before the word; what asks or points is none.
_PASSWORD_AFTER = any_case(
    r"(?<!\S)[\"'‘“]?(?!(?:what|whats|this|that|these|it|which|where|here|how|who|why|there|and|so|one|"
    r"below|above|because|when|if|whatever|problem|issue|reason|question|i|he|she|but|or|error|also)\b)"
    r"([^\s\"“”’]{3,})[\"'’”]? (?:is|was) (?:the|my|our|his|her|your) (?:[a-z-]{2,8} )?"
    r"(?:pass ?(?:word|code|phrase)|pwd|pass)\b(?! (?:manager|policy|reset))"
)
# What follows the word without being one.
_NOT_PASSWORDS = frozenset(
    "a about accepted admin after again all already also always an and any are as asked at back "
    "be because been before being blocked both browser but by can cannot changed code correct "
    "could did does don't done dont down email enabled entered entry even expired failed fast "
    "field fine first for forgotten form free from get gone good great guest had has have help "
    "here hint "
    "how i if ill im in incorrect instead invalid is isn't isnt it it's its just keeps know last "
    "like link locked log login longer lost manager may me missing more must my needed needs never "
    "no not now number of off ok okay old on once one only or our out over page please pls policy "
    "prompt properly protected protection recovery rejected required requirements reset resets "
    "resetting right safe same saved screen secure security set shared she should shown slow "
    "so some "
    "still stolen strange strong supposed than thanks that the their them then there they this "
    "though through to today too try twice typed u under unknown until up updated use used usual "
    "valid very visible was we weak weird well were what when where which while who why will with "
    "without won't wonky wont work working works would wrong you your".split()
)
# A mark in place of what was found before.
_MASKED = re.compile(r"\[[A-Z][A-Z_]+\]")
# Most words that follow at once: of a password, and of a passphrase.
_PASSWORD, _PHRASE = 3, 4
# Digits of a number that counts what follows ("wifi: 5 ghz only").
_QUANTITY = 2
# What became of a password, and how.
_STATE_WORD = re.compile(r"[a-z]{2,}(?:ed|ly|ing)")
# Where a password of words ends.
_AFTER_PASSWORD = frozenset(
    "a and are but can could do does doesn't doesnt for from has have how i i'm im if in is isn't "
    "isnt it it's its keeps my not now of on or please pls so thanks that the then this to was "
    "what when where which why will with won't wont works would you your".split()
)
# The same, and what is said about a password.
_NO_MORE_OF_IT = _AFTER_PASSWORD.union(
    "all didnt dont lowercase no only right says uppercase".split()
)


def password_words(text: str, lowered: str) -> Iterator[Span]:
    """Yield what "the password is …" and the like name: characters start to end.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    if any(hint in lowered for hint in _PASSWORD_HINTS):
        for pattern in (_CHANGED, _STRANGE, _SET_TO, _USED_AS, _BESIDE):
            for match in pattern.finditer(text):
                if match[1].casefold() not in _NOT_PASSWORDS and not _MASKED.match(match[1]):
                    yield match.start(1), match.start(1) + len(match[1].rstrip(".,!?'\""))
        yield from spans(text, _SPOKEN)
        yield from _after_cue(text)
        yield from _before_cue(text)


def _after_cue(text: str) -> Iterator[Span]:
    for cue in _PASSWORD_CUE.finditer(text):
        words = _PASSWORD_VALUE.match(text, cue.end())
        if words is None or _MASKED.match(words[1]):
            continue
        said = words[1].casefold().split()
        first = said[0].strip("'\".,!?")
        if first.isdigit() and len(first) <= _QUANTITY and len(said) > 1:
            continue
        if first in _NOT_PASSWORDS or _STATE_WORD.fullmatch(first):
            continue
        longest = _PHRASE if "phrase" in cue[0].casefold() else _PASSWORD
        if cue["link"] is None and (_is_sentence(said, longest) or said[-1].endswith("?")):
            continue
        value = _until_sentence(words[1]).rstrip(".,!?'\"")
        if any(map(str.isalnum, value)):
            yield words.start(1), words.start(1) + len(value)


def _until_sentence(said: str) -> str:
    """Return the words up to one that goes on with the sentence."""
    end = 0
    for word in re.finditer(r"\S+", said):
        if end and word[0].casefold() in _NO_MORE_OF_IT:
            break
        end = word.end()
    return said[:end]


def _before_cue(text: str) -> Iterator[Span]:
    for match in _PASSWORD_AFTER.finditer(text):
        if match[1].casefold() not in _NOT_PASSWORDS:
            yield (match.start(1), match.end(1))


def _is_sentence(said: Sequence[str], longest: int) -> bool:
    return len(said) > longest or not _AFTER_PASSWORD.isdisjoint(said)
