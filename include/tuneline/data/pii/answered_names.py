"""Find the names in an answer to a question for one, and the name that is all that a turn holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.cases import lacks_case
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.words import is_ordinary

ANSWER_WORD = re.compile(r"(?<![\w@.])[^\W\d_][^\W\d_'’-]*(?:['’-][^\W\d_]+)*(?![\w@]|\.\w)")
# An everyday word may be a name in an answer with so few words besides filler.
_SHORT = 3
# Longer answers hold more than the name.
_SENTENCE, _LONG = 6, 14
# Words of one name, with its initials.
_MOST_NAMES = 5
_FIRST_NAME = re.compile(r"\W*([A-ZÀ-Þ][a-zà-ÿ'’-]{2,}(?: [A-ZÀ-Þ][a-zà-ÿ'’-]{2,})?)(?= \d|[,.:] )")
# A code, where a text has small letters, too.
_CAPITALS = re.compile(r"[A-Z]{2,4}")
_LETTERED = re.compile(r"(?<![\w'’-])[^\W\d_](?:[ .,-]{1,2}[^\W\d_]){2,}(?![\w'’-])")


def bare_name(text: str, words: NameWords) -> Iterator[Hit]:
    """Yield the name that is all that a turn holds ("suresh", "anna maria rossi here")."""
    if len(text.split()) > _SHORT + 3 or re.search(r"[\d?]", text):
        return
    own = [word for word in ANSWER_WORD.finditer(text) if word[0].casefold() not in FILLER]
    if not 1 <= len(own) <= _SHORT:
        return
    lowered = [word[0].casefold() for word in own]
    known = sum(
        words.is_given(w) or (words.is_listed(w) and not words.is_everyday(w)) for w in lowered
    )
    strange = sum(words.is_strange(word) for word in lowered)
    if any(words.is_everyday(w) or w in words.not_people or w in words.common for w in lowered):
        return
    if any(is_ordinary(w) and not words.is_listed(w) for w in lowered):
        return
    if known + strange < len(lowered) or not known:
        return
    start = own[0].start()
    for word, after in zip(own, (*own[1:], None), strict=True):
        # Words between two names belong to neither of them ("rosa. im hector").
        if after is None or text[word.end() : after.start()].strip(" '’-"):
            yield Hit(start, word.end(), "PERSON")
            start = after.start() if after else 0


def named_people(text: str, words: NameWords) -> Iterator[Hit]:
    """Yield the runs of words of an answer that can be names."""
    yield from _first(text, words)
    every = list(ANSWER_WORD.finditer(text))
    if len(every) > _LONG:
        # A sentence: the recogniser and the cues look for the names in it.
        return
    runs = list(_runs(text, every, words))
    # A list of names is longer, and has no everyday words.
    short = sum(map(len, runs)) <= _SHORT or not any(
        words.is_everyday(word[0].casefold()) for run in runs for word in run
    )
    # Beside other values an everyday word is none.
    alone = len(runs) == 1 and not re.search(r"\d", text)
    coded = set() if text.isupper() else {w[0] for w in every if _CAPITALS.fullmatch(w[0])}
    for run in runs:
        lowered = [word[0].casefold().split("'")[0].split("’")[0] for word in run]
        names = [
            name
            for name, word in zip(lowered, run, strict=True)
            if _can_be_name(name, words, short=short)
            and (words.is_given(name) or word[0] not in coded)
            and (alone or name in words.names_as_words or not words.is_everyday(name))
        ]
        if _is_initialled(run):
            names = lowered
        if len(run) > _MOST_NAMES:
            continue
        if len(every) > _SENTENCE:
            cased = not lacks_case(text)
            capitals = {w for w, word in zip(lowered, run, strict=True) if word[0][0].isupper()}
            names = [w for w in names if words.is_listed(w) or (cased and w in capitals)]
        if names and 2 * len(names) >= len(run):
            # What stands around a name is said about it ("probably alejandra", "it says effie").
            first = next(at for at, word in enumerate(lowered) if word in names or len(word) == 1)
            last = max(at for at, w in enumerate(lowered) if w in names or not words.is_everyday(w))
            yield Hit(run[first].start(), run[last].end(), "PERSON")


def _runs(
    text: str, every: Sequence[re.Match[str]], words: NameWords
) -> Iterator[list[re.Match[str]]]:
    """Yield the runs of words of an answer with neither filler nor signs between them."""
    run: list[re.Match[str]] = []
    for word in every:
        apart = run and text[run[-1].end() : word.start()].strip(" .") != ""
        filler = word[0].casefold().replace("’", "'") in FILLER
        if filler and word[0].casefold() in words.names_as_words:
            # "hope l starkweather" is no wish.
            following = text[word.end() :].split()
            filler = not following or not any(
                words.is_strange(w.casefold().strip(".,")) for w in following[:2]
            )
        if run and (apart or filler):
            yield run
            run = []
        if not filler:
            run.append(word)
    if run:
        yield run


def _first(text: str, words: NameWords) -> Iterator[Hit]:
    """Yield the name with which a longer answer begins ("Segun 90 90 90 i want …")."""
    match = _FIRST_NAME.match(text)
    said = match[1].casefold().split() if match else []
    if match and all(words.is_strange(word) or words.is_given(word) for word in said):
        yield Hit(match.start(1), match.end(1), "PERSON")


def _is_initialled(some: Sequence[re.Match[str]]) -> bool:
    """Return True if words with capitals begin with an initial ("G Furlong")."""
    cased = all(word[0][0].isupper() for word in some)
    return cased and len(some) > 1 and len(some[0][0]) == 1 < len(some[-1][0])


def _can_be_name(word: str, words: NameWords, *, short: bool) -> bool:
    if words.is_given(word) or words.is_strange(word):
        return True
    if short and words.is_listed(word):
        return word not in words.not_names or word in words.also_words
    if words.is_everyday(word):
        return False
    # A short name is often one letter away from a word.
    return words.is_listed(word) or (short and word not in words.common and not is_ordinary(word))


def spelled_names(text: str) -> Iterator[Hit]:
    """Yield a name that is spelled letter by letter."""
    for match in _LETTERED.finditer(text):
        yield Hit(match.start(), match.end(), "PERSON")
