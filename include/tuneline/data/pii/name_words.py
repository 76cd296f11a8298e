"""Know given and family names, and tell them from ordinary words of a language and a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from tuneline.data.pii.surrogates import name_lists
from tuneline.data.pii.words import everyday_words, is_ordinary, is_slip

# Lists of every locale that uses Latin letters.
_PROVIDERS = "faker.providers.person"
_ADDRESSES = "faker.providers.address.en"
_NAME = re.compile(r"[^\W\d_]{2,}")
_LAST_LATIN = "\u024f"


# "McGillivray", but for what is sold under such a name.
_SON_OF = re.compile(
    r"(?:mc|mac)(?!(?:donalds?|nuggets?|flurry|muffin|chicken|rib|cafe|wrap|swirl|value|os)$)[a-z]{5,}"
)
# A shorter given name that looks like a slip of a word is one more often.
_LEAST_GIVEN = 4


class NameLists(NamedTuple):
    """Names in lower case."""

    given: frozenset[str]
    family: frozenset[str]


def _listed(provider: type, kinds: tuple[str, ...]) -> Iterator[str]:
    for attribute in dir(provider):
        values = getattr(provider, attribute)
        if not attribute.startswith(kinds) or callable(values) or isinstance(values, property):
            continue
        for value in values:
            # Romanised names stand in tuples of several spellings.
            spelled = value[-1] if isinstance(value, tuple) else value
            for word in _NAME.findall(str(spelled).casefold()):
                if max(word) <= _LAST_LATIN:
                    yield word


@cache
def listed_names() -> NameLists:
    """Return the given and family names of Faker's locales and of this package."""
    more = name_lists("listed_names.yaml")
    given = {*name_lists()["given"], *more["given"]}
    family = set(more["family"])
    package = import_module(_PROVIDERS)
    for module in iter_modules(package.__path__):
        provider = import_module(f"{_PROVIDERS}.{module.name}").Provider
        given.update(_listed(provider, ("first_name", "romanized_first")))
        family.update(_listed(provider, ("last_name", "romanized_last")))
    countries = set(_listed(import_module(_ADDRESSES).Provider, ("countries",)))
    return NameLists(frozenset(given - countries), frozenset(family))


class NameWords:
    """Names and ordinary words of a dataset.

    Args:
        common: words of the dataset that are not names, from `entities.common_words`.
        english: True if the texts are English, as dictionary and slips are.
    """

    def __init__(self, common: frozenset[str] = frozenset(), *, english: bool = True) -> None:
        lists = name_lists()
        # A name that no dictionary has as a word stays a name, however many rows it is in.
        listed = listed_names().given
        self.common = frozenset(w for w in common if w not in listed or is_ordinary(w))
        self.also_words = frozenset(lists["also_words"])
        self.not_names = frozenset(lists["not_names"])
        self.not_people = self.not_names | frozenset(lists["not_people"])
        self.names_as_words = frozenset(lists["names_as_words"])
        self.given = frozenset(lists["given"])
        self._listed_given = listed
        self._english = english
        self._everyday = everyday_words()
        self._meant = self._everyday | common | self.not_names
        self._slips: dict[str, bool] = {}
        self._known: dict[str, bool] = {}

    def is_given(self, word: str) -> bool:
        """Return True if a lower-case word is a given name and hardly anything else."""
        if word in self.given:
            return True
        if word not in self._listed_given:
            return False
        return self.is_strange(word) or (len(word) > _LEAST_GIVEN and self.is_name_only(word))

    def is_name_only(self, word: str) -> bool:
        """Return True if a lower-case word is a listed name and a word of nothing else.

        It may look like a slip of another word ("bilal").
        """
        return (
            self.is_listed(word)
            and not is_ordinary(word)
            and word not in self.common
            and word not in self.not_people
        )

    def is_sure(self, word: str) -> bool:
        """Return True if a lower-case word is a family name, or a name's genitive, and no brand.

        Brands and places are in the dictionary with a capital ("Toyota").
        """
        if len(word) <= _LEAST_GIVEN or not self.is_strange(word) or is_ordinary(word.title()):
            return False
        if _SON_OF.fullmatch(word):
            return True
        stem = word.removesuffix("s")
        genitive = stem != word and len(stem) > _LEAST_GIVEN and self.is_name_only(stem)
        return self.is_listed(word) or genitive

    def is_known(self, word: str) -> bool:
        """Return True if a lower-case word is a given name or a sure family name."""
        if word not in self._known:
            self._known[word] = self.is_given(word) or self.is_sure(word)
        return self._known[word]

    def is_double_given(self, word: str) -> bool:
        """Return True if a lower-case word is a given name of two parts ("mei-ling")."""
        first, hyphen, second = word.partition("-")
        if not hyphen or not self.is_listed_given(first) or first in self.not_people:
            return False
        named = self.is_known(first) or self.is_listed(second)
        return named and second.isalpha() and not self.is_everyday(second)

    def is_listed(self, word: str) -> bool:
        """Return True if a lower-case word is a given or family name, whatever else it is."""
        names = listed_names()
        return word in names.given or word in names.family or word in self.given

    def is_listed_given(self, word: str) -> bool:
        """Return True if a lower-case word is a given name, whatever else it is."""
        return word in self._listed_given or word in self.given

    def is_everyday(self, word: str) -> bool:
        """Return True if a lower-case word is so common that it hardly ever names somebody."""
        return word in self._everyday or word in self.not_names

    def is_strange(self, word: str) -> bool:
        """Return True if a lower-case word is in no dictionary and not a typing slip."""
        return (
            len(word) > 2
            and not is_ordinary(word)
            and word not in self.common
            and word not in self.not_people
            and not self.is_slip(word)
        )

    def is_name_part(self, word: str) -> bool:
        """Return True if a part of a name can be looked for on its own, in any case."""
        lowered = word.casefold()
        if lowered in self.given:
            return True
        return not self.is_everyday(lowered) and not (
            lowered in self.common and is_ordinary(lowered)
        )

    def is_slip(self, word: str) -> bool:
        """Return True if a word is a typing slip of an everyday word or one of the dataset."""
        if word not in self._slips:
            self._slips[word] = self._english and is_slip(word, self._meant)
        return self._slips[word]
