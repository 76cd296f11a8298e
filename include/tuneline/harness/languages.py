"""Guess the language of a short text, to group rows by it.

A text in another script than Latin is named by its script. One in Latin script is told by the
commonest function words of twelve languages. It is a guess for groups of rows: what has too few of
those words, or as many of two languages, stays `unknown`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

UNKNOWN = "unknown"
_LATIN = "LATIN"

# The commonest words of running text that few other languages of the list share.
_WORDS = {
    "cs": "a je se na to že si jsem ale jak mi co za jsem proč kde pro jsou můj mám",
    "da": "og jeg er det at ikke har min på til med hvordan hvorfor kan af en mit der",
    "de": "der die das und ich ist nicht ein eine mein meine wie auf mit für zu es warum wo kann",
    "en": "the and i is my to of a in it was for have that can you on do how what why with not",
    "es": "el la los que de mi es no en un una por qué cómo para con se lo puedo está y",
    "fr": "le la les de des je est pas un une mon ma et à comment pourquoi pour avec que vous il",
    "it": "il la di che non è un una mio mia per come con perché sono ho posso e del della si",
    "nl": "de het een ik is niet mijn en van op te hoe waarom met voor dat kan wat er heb aan",
    "pl": "i nie się na jest w z do że jak moja mój to dlaczego mogę gdzie czy dla mam moje",
    "pt": "o a os as que de meu minha não é um uma por como para com eu está posso em do da",
    "sv": "och jag är det att inte har min på till med hur varför kan av en mitt för som",
    "tr": "ve bir bu için ne nasıl neden benim değil var yok mi ile çok da",
}
_WORD = re.compile(r"[^\W\d_]+")


@cache
def _languages() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for language, words in _WORDS.items():
        for word in set(words.split()):
            found[word] = (*found.get(word, ()), language)
    return found


def _script_of(text: str) -> str:
    """Return the script of most of a text's letters, `unknown` without one."""
    if text.isascii():
        return _LATIN if _WORD.search(text) else UNKNOWN
    letters = [char for char in text if char.isalpha()]
    # The name of a letter begins with its script: LATIN SMALL LETTER A.
    scripts = Counter(unicodedata.name(char, UNKNOWN).split(" ", 1)[0] for char in letters)
    script, count = scripts.most_common(1)[0] if scripts else (UNKNOWN, 0)
    return script if 2 * count > len(letters) else UNKNOWN


def language_of(text: str) -> str:
    """Return the code of a text's language, the name of its script, or `unknown`."""
    script = _script_of(text)
    if script != _LATIN:
        return script
    votes: dict[str, float] = {}
    for word in _WORD.findall(text.casefold()):
        languages = _languages().get(word, ())
        for language in languages:
            # A word of several languages says less.
            votes[language] = votes.get(language, 0.0) + 1 / len(languages)
    best = sorted(votes.values(), reverse=True)
    if not best or best[0] in best[1:]:
        return UNKNOWN
    return max(votes, key=votes.__getitem__)
