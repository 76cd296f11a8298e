"""Find the names of accounts by the words before them ("login is rhea.dsouza")."""

from __future__ import annotations

from collections.abc import Iterator

from tuneline.data.pii.matching import Span, any_case, spans

_NETWORKS = (
    "insta",
    "gamer",
    "snap",
    "tiktok",
    "telegram",
    "discord",
    "twitter",
    "twitch",
    "screen name",
    "psn",
    "xbox",
)
# "@kim_07" names an account without a word before it.
_HANDLE = any_case(r"(?<![\w@./-])@(?=[\w.]*[\d_])[a-z][\w.]{3,29}(?![\w@])")
# "tomekw_2" is no word.
_UNDERSCORED = any_case(
    r"(?<![\w@./\\-])(?=\w{6})(?=\w*\d)[a-z][a-z\d]*_[a-z\d_]+(?![\w@/\\=(-]|\.\w)"
)
_TWO_WORDS = any_case(r"\W*([a-z]{3,}(?:_[a-z]{2,}){1,3})\W*")
_HINTS = ("user", "login", "log in", "handle", "online id", *_NETWORKS)
# A name of an account has a digit, a sign or a capital inside; other words speak of it.
_USER_NAME = any_case(
    r"\b(?:user(?: ?(?:name|id))?|log ?in(?: (?:name|id))?|online id|handle|screen name|"
    r"(?:insta(?:gram)?|gamer(?: ?tag)?|snap(?:chat)?|tiktok|telegram|discord|"
    r"twitter|twitch|psn|xbox)"
    r"(?: (?:name|id|tag|account|handle))?)"
    r"(?: (?:for|to|on|at|of) (?:the |my |your )?[a-z]{2,12})?(?: ?(?:is|was|:|=))? "
    r"(?=[\w.-]*(?:\d|[a-z][._-][a-z]))([a-z][\w.-]{3,}[a-z\d])(?![\w@/])"
)


def user_names(text: str, lowered: str) -> Iterator[Span]:
    """Yield the names of accounts: characters start to end.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    if "@" in text:
        yield from spans(text, _HANDLE)
    if "_" in text:
        yield from spans(text, _UNDERSCORED)
        # All of a turn.
        alone = _TWO_WORDS.fullmatch(text)
        if alone:
            yield alone.span(1)
    if any(hint in lowered for hint in _HINTS):
        for match in _USER_NAME.finditer(text):
            yield match.span(1)
