"""Find names and places by words that introduce them and by spaCy's recogniser (tier 2).

Models of this kind learn from edited text and miss names in chat without capital letters. There the
recogniser gets the same text in title case, and its answers count only for words that are known
given names or otherwise unusual. The share of names that is still missed is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tuneline.data.pii.cases import lacks_case
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.models import load_model
from tuneline.data.pii.name_rules import LETTERS, START, NameRules, ends_place, is_firm
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.ner.entity_model import EntityModel
from tuneline.data.pii.words import is_ordinary

NER_ENTITIES = ("PERSON", "LOCATION")
# The labels of OntoNotes and, in most other languages, of WikiNER.
_LABELS = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION"}
BATCH = 128
SHORT_NAME = 6

_PLACE_CUE = re.compile(r"\b(?:in|from|to|near|of|at|around|outside|via|through) $", re.I)
_INITIALS_BEFORE = re.compile(r"(?<![\w.])(?:[A-ZÀ-Þ]\. ?)+$")
# Words for relatives and others, which the model takes for a part of their names.
_KIN = frozenset(
    "son daughter wife husband mum mom mother dad father brother sister nan gran grandma grandpa "
    "aunt uncle cousin niece nephew baby kid boss friend neighbour neighbor partner fiance fiancee "
    "boyfriend girlfriend landlord roommate flatmate manager agent driver doctor nurse teacher "
    "colleague client tenant technician nominee".split()
)


class Recogniser:
    """A recogniser of names and places.

    Args:
        model: an installed spaCy package; with None only names after a cue are found.
        entities: types of `NER_ENTITIES` to find.
        allow: texts that are never names.
        common: words that are not names, from `common_words`.
        english: True if the texts are English, as cues and dictionary are.
        shared: model of all languages that takes the place of spaCy's.

    Attributes:
        words: names and ordinary words.
        ignored_labels: labels of the shared model that name nothing that is looked for.

    Raises:
        UserError: if the spaCy package is not installed.
    """

    def __init__(
        self,
        model: str | None,
        entities: Sequence[str],
        allow: Sequence[str] = (),
        common: frozenset[str] = frozenset(),
        *,
        english: bool = True,
        shared: EntityModel | None = None,
    ) -> None:
        self._shared = shared
        self.ignored_labels = shared.ignored if shared else ()
        self._english = english
        self._nlp = load_model(model) if model else None
        self._entities = frozenset(entities)
        self._allow = frozenset(text.casefold() for text in allow)
        self.words = NameWords(common, english=english)
        self._rules = NameRules(self.words, self._allow)

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Return the names and places of each text; hits may overlap."""
        found: list[list[Hit]] = [[] for _ in texts]
        if "PERSON" in self._entities and self._english:
            for hits, text in zip(found, texts, strict=True):
                for hit in (self._rules.with_given(text, hit) for hit in self._rules.find(text)):
                    if not any(h.start <= hit.start and hit.end <= h.end for h in hits):
                        hits.append(hit)
        if self._shared is not None:
            # It was trained to read texts as they are.
            for hits, text, own in zip(found, texts, self._shared.find(texts), strict=True):
                hits.extend(hit for hit in own if self._is_allowed(text, hit))
        if self._nlp is not None:
            # In lower case or in capitals a name looks like any word.
            cased = [self._cased(text) for text in texts] if self._english else texts
            for hits, text, doc in zip(
                found, texts, self._nlp.pipe(cased, batch_size=BATCH), strict=True
            ):
                hits.extend(
                    self._rules.with_given(text, hit) if self._english else hit
                    for hit in self._recognised(text, doc)
                )
        return found

    def _is_allowed(self, text: str, hit: Hit) -> bool:
        return text[hit.start : hit.end].casefold() not in self._allow

    def _cased(self, text: str) -> str:
        """Return a text without case as an editor would write it, with capitals for names."""
        if not lacks_case(text):
            return text

        def write(match: re.Match[str]) -> str:
            word = match[0].lower()
            known = self.words.is_given(word) and word not in self.words.also_words
            plain = is_ordinary(word) or word in self.words.common or word in self.words.not_names
            if (
                known
                or not plain
                or START.search(text, max(0, match.start() - 64), match.start())
                or word == "i"
            ):
                return word[0].upper() + word[1:]
            return word

        title = LETTERS.sub(write, text)
        return title if len(title) == len(text) else text

    def _recognised(self, text: str, doc: Any) -> Iterator[Hit]:
        retitled = doc.text != text
        for entity in doc.ents:
            start, end = _trim(text, entity.start_char, entity.end_char)
            start = _after_kin(text, self._rules.after_lead(text, start, end), end)
            words = [word.casefold() for word in LETTERS.findall(text[start:end])]
            label = _LABELS.get(entity.label_)
            if label is None and words and self.words.is_given(words[0]):
                # The model often takes names that it does not know for firms.
                label = "PERSON"
            if label not in self._entities:
                continue
            if not words or any(char.isdigit() for char in text[start:end]):
                continue
            if text[start:end].casefold() in self._allow:
                continue
            if self._rules.is_abbreviation(text, start, end):
                continue
            if not retitled and text[start:end].islower() and not self.words.is_given(words[0]):
                continue
            if retitled and self._counts(words, text[end : end + 2]):
                continue
            first = START.search(text, max(0, start - 64), start) is not None
            place = label == "LOCATION"
            placed = place and bool(_PLACE_CUE.search(text, max(0, start - 64), start))
            if not self._unusual(words, retitled, first, place, placed):
                continue
            if label == "PERSON":
                other = is_firm(text, start, end) or ends_place(text, start)
                if other or not self._several(words):
                    continue
                initials = _INITIALS_BEFORE.search(text, max(0, start - 64), start)
                start = initials.start() if initials else start
                end = self._rules.family_end(text, end, cased=False) if retitled else end
            yield Hit(start, end, label)

    def _counts(self, words: Sequence[str], after: str) -> bool:
        """Return True if ordinary words stand before a number ("max 4", "flight ba 117")."""
        return after.strip()[:1].isdigit() and not any(
            self.words.is_strange(word)
            or (self.words.is_given(word) and word not in self.words.also_words)
            for word in words
        )

    def _unusual(
        self, words: Sequence[str], retitled: bool, first: bool, place: bool, placed: bool
    ) -> bool:
        """Return True if words can be a name.

        Args:
            words: words in lower case.
            retitled: True if their capitals come from `_cased`.
            first: True if they begin a sentence, where any word has a capital.
            place: True if they are to be a place.
            placed: True if the words before them introduce a place.
        """
        ordinary = [
            word in self.words.not_names
            or (word in self.words.common and not self.words.is_given(word))
            for word in words
        ]
        # "New" and "the" are parts of places, not of people.
        if all(ordinary) if place else any(ordinary) or not self.words.not_people.isdisjoint(words):
            return False
        if len(words) > 1 or self.words.is_given(words[0]):
            return True
        if len(words[0]) <= SHORT_NAME and (placed or not (retitled or first)):
            # Many short names are one letter away from a word.
            return True
        return (
            self.words.is_strange(words[0])
            if retitled and not placed
            else not self.words.is_slip(words[0])
        )

    def _several(self, words: Sequence[str]) -> bool:
        """Return True unless one of several words is no name's ("Norton Peak Software")."""
        known = any(self.words.is_given(w) and w not in self.words.also_words for w in words)
        return known or not any(
            len(word) > 2 and is_ordinary(word) and not self.words.is_listed(word) for word in words
        )


def _after_kin(text: str, start: int, end: int) -> int:
    """Return where a name begins after the word for a relative before it ("son Kacper")."""
    word = LETTERS.match(text, start, end)
    if word is None or word[0].casefold() not in _KIN:
        return start
    return min(word.end() + 1, end)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out what does not belong to a name: possessive, punctuation, space."""
    piece = text[start:end]
    piece = re.sub(r"(?:['’]s)?[\W_]*$", "", piece)
    lead = len(piece) - len(piece.lstrip(" .,;:!?'\"()[]{}-\n"))
    return start + lead, start + len(piece)
