"""Find names and places by words that introduce them and by spaCy's recogniser (tier 2).

Models of this kind learn from edited text and miss names in chat without capital letters. There the
recogniser gets the same text in title case, and its answers count only for words that are known
given names or otherwise unusual. The share of names that is still missed is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.cases import WORD, lacks_case
from tuneline.data.pii.cues import (
    CALLED_CUE,
    CALLED_CUE_WORDS,
    NICKNAME_CUE,
    NICKNAME_CUE_WORDS,
    PERSON_CUE,
    PERSON_CUE_WORDS,
    PERSON_TAIL,
    ROLE_CUE,
    ROLE_CUE_WORDS,
    SPEAKING,
    SURE_CUE,
    SURE_CUE_WORDS,
    TAIL_WORDS,
    TIMES,
    TITLE_CUE,
    TITLES,
    VERBS,
    WEAK_CUE,
)
from tuneline.data.pii.models import load_model
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.ner.entity_model import EntityModel
from tuneline.data.pii.patterns import Hit
from tuneline.data.pii.words import is_ordinary

NER_ENTITIES = ("PERSON", "LOCATION")
# The labels of OntoNotes and, in most other languages, of WikiNER.
_LABELS = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION"}
BATCH = 128
SHORT_NAME = 6

_PLACE_CUE = re.compile(r"\b(?:in|from|to|near|of|at|around|outside|via|through) $", re.I)
_LETTERS = re.compile(r"[^\W\d_]+")
# "J. Miller".
_INITIAL = re.compile(r"[^\W\d_]\.")
_INITIALS_BEFORE = re.compile(r"(?<![\w.])(?:[A-ZÀ-Þ]\. ?)+$")
_PARTICLES = frozenset(
    "van von der den de del della di da dos du la le bin ibn al el ter ten".split()
)
_FAMILY = re.compile(
    rf" ((?:(?:{'|'.join(sorted(_PARTICLES))}) ){{0,3}}(?:[A-ZÀ-Þ]\.|[A-ZÀ-Þ][\w'’-]+))"
)
_FAMILY_UNCASED = re.compile(
    r"(?: [a-z]\.?)? ([^\W\d_]{3,}(?:-[^\W\d_]{2,})?)(?![\w@]|[.-]\w)", re.IGNORECASE
)
# "t. rautenbach", in a text without capitals.
_INITIALED = re.compile(r"(?<![\w.])[a-z]\. ?([^\W\d_]{4,})(?![\w@]|[.-]\w)", re.IGNORECASE)
# "T Rao", in a text with them.
_INITIALED_CASED = re.compile(
    r"(?<![\w.-])(?<![A-Z] )[B-HJ-Z]\.? (?:(?:ap|van|de|al|el) )?([A-ZÀ-Þ][a-zà-ÿ'’-]{2,})(?![\w@])"
)
# At the end of what is said, even an everyday word is a family name ("ivan king").
_ENDS_HERE = re.compile(r"\W*$|[,;.!?]|\n| [(+]?\d")
_WORD_BEFORE = re.compile(r"(?<![\w@.'’-])([^\W\d_]{3,}) (?:[^\W\d_]\.? )?$")
_START = re.compile(r"(?:^|[.!?\n]\s*)[\"'(]*$")
_TITLE = re.compile(r"(?:mr|mrs|ms|mx|miss|dr|prof|sir|madam)\b\.?\s+", re.IGNORECASE)
# Who speaks, in a transcript ("Caller: …").
_SPEAKER = re.compile(r"([^\W\d_]{3,})\s{0,2}:(?:\s|$)")
_FIRM = re.compile(
    r"\W{1,2}(?:software|llc|ltd|inc|gmbh|plc|corp|company|group|bank|insurance|airlines?|airways|"
    r"motors|hotels?|plumbing|university|college|hospital|school|street|avenue|road|airport|station)\b",
    re.IGNORECASE,
)
# Names of places of which the rest is a given name ("San Francisco").
_IN_PLACES = re.compile(
    r"\b(?:san|santa|saint|st\.?|los|las|fort|port|lake|mount|new) $", re.IGNORECASE
)
_DATED = re.compile(r"(?:st|nd|rd|th)?,? ?\d")
# Words for relatives and others, which the model takes for a part of their names.
_KIN = frozenset(
    "son daughter wife husband mum mom mother dad father brother sister nan gran grandma grandpa "
    "aunt uncle cousin niece nephew baby kid boss friend neighbour neighbor partner fiance fiancee "
    "boyfriend girlfriend landlord roommate flatmate manager agent driver doctor nurse teacher "
    "colleague client tenant technician nominee".split()
)
# An abbreviation, where others have small letters ("SIM", "IRS").
_ABBREVIATION = re.compile(r"[A-Z]{2,5}")
# Characters before a name in which they are looked for.
_REACH = 24
# One letter that stands for a word in chat ("and", "with", "you").
_LETTER_WORDS = frozenset("n w u r b k y c x".split())


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

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Return the names and places of each text; hits may overlap."""
        found: list[list[Hit]] = [[] for _ in texts]
        if "PERSON" in self._entities and self._english:
            for hits, text in zip(found, texts, strict=True):
                for hit in map(partial(self._with_given, text), self._by_rules(text)):
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
                    self._with_given(text, hit) if self._english else hit
                    for hit in self._recognised(text, doc)
                )
        return found

    def _with_given(self, text: str, hit: Hit) -> Hit:
        """Return a name with the given name before it that is a word as well ("grace okafor")."""
        if hit.entity != "PERSON" or " " in text[hit.start : hit.end]:
            return hit
        before = _WORD_BEFORE.search(text, max(0, hit.start - _REACH), hit.start)
        if before is None:
            return hit
        word = before[1].casefold()
        if word in TITLES:
            return hit
        given = word in self.words.also_words or (
            self.words.is_listed_given(word) and not self.words.is_everyday(word)
        )
        cased = before[1][0].isupper() or lacks_case(text)
        # No word at all, with a capital as the name has ("Emrys Griffiths").
        given = given or (before[1][0].isupper() and self.words.is_strange(word))
        return Hit(before.start(1), hit.end, hit.entity) if given and cased else hit

    def _is_allowed(self, text: str, hit: Hit) -> bool:
        return text[hit.start : hit.end].casefold() not in self._allow

    def _by_rules(self, text: str) -> Iterator[Hit]:
        """Yield the people that a cue introduces or whose given name is known."""
        words = set(_LETTERS.findall(text.casefold()))
        known = any(map(self.words.is_known, words))
        cased = not lacks_case(text)
        if not words.isdisjoint(TITLES):
            yield from self._introduced(text, TITLE_CUE, self._titled, cased)
        if not words.isdisjoint(SURE_CUE_WORDS):
            yield from self._introduced(text, SURE_CUE, _always, cased)
        if not words.isdisjoint(PERSON_CUE_WORDS):
            yield from self._introduced(text, PERSON_CUE, self._known_or_strange, cased)
        if not words.isdisjoint(NICKNAME_CUE_WORDS):
            yield from self._introduced(text, NICKNAME_CUE, self._nickname, cased)
        told = known or not words.isdisjoint(self.words.names_as_words)
        if told and not words.isdisjoint(CALLED_CUE_WORDS):
            yield from self._introduced(text, CALLED_CUE, self._named_as_word, cased)
        if not words.isdisjoint(ROLE_CUE_WORDS):
            yield from self._introduced(text, ROLE_CUE, self._named_in_role, cased)
        if not words.isdisjoint(TAIL_WORDS):
            yield from self._introduced(text, PERSON_TAIL, self._known_or_strange, cased)
        if "speaking" in words:
            yield from self._introduced(text, SPEAKING, self._speaker, cased)
        if not cased and not text[1:].islower():
            yield from self._capitals(text)
        if not cased and ". " in text:
            for match in _INITIALED.finditer(text):
                if self.words.is_strange(match[1].casefold()):
                    yield Hit(match.start(), match.end(), "PERSON")
        if cased:
            for match in _INITIALED_CASED.finditer(text):
                word = match[1].casefold()
                if self.words.is_strange(word) or (
                    self.words.is_listed(word) and not self.words.is_everyday(word)
                ):
                    yield Hit(match.start(), match.end(), "PERSON")
        # Most texts hold no known given name.
        if known:
            yield from self._introduced(text, WEAK_CUE, self.words.is_given, cased)
            yield from self._listed(text, cased)

    def _introduced(
        self, text: str, cue: Caseless, named: Callable[[str], bool], cased: bool
    ) -> Iterator[Hit]:
        """Yield the names after a cue, of which `named` accepts the first word."""
        match = cue.search(text)
        while match is not None:
            hit = self._name_at(text, match.start(1), match.end(1), named, cased)
            if hit is not None:
                yield hit
            # Among the words after one cue may be the next ("first name … last name …").
            match = cue.search(text, max(match.start(1), match.start() + 1))

    def _known_or_strange(self, word: str) -> bool:
        known = self.words.is_given(word) or self.words.is_strange(word)
        return known or self.words.is_name_only(word)

    def _titled(self, word: str) -> bool:
        return word not in FILLER or self.words.is_listed(word)

    def _nickname(self, word: str) -> bool:
        return not (self.words.is_everyday(word) or word in TIMES or word.endswith("ly"))

    def _named_as_word(self, word: str) -> bool:
        """Return True if a name is also a word that hardly follows "she is" ("call me rose")."""
        return word in self.words.names_as_words or self.words.is_given(word)

    def _speaker(self, word: str) -> bool:
        """Return True if somebody can introduce himself by a word ("Mark speaking")."""
        return self._named_as_word(word)

    def _named_in_role(self, word: str) -> bool:
        listed = self.words.is_listed(word) and not self.words.is_everyday(word)
        name = listed and (not is_ordinary(word) or self.words.is_listed_given(word))
        return word not in VERBS and (name or self._known_or_strange(word))

    def _listed(self, text: str, cased: bool) -> Iterator[Hit]:
        """Yield known given names, with the family names after them."""
        for match in WORD.finditer(text):
            lowered = match[0].casefold()
            if not self.words.is_known(lowered) or lowered in self.words.also_words:
                continue
            if cased and not match[0][0].isupper():
                continue
            if self._is_abbreviation(text, *match.span()):
                continue
            if _ends_place(text, match.start()):
                continue
            end = self._family_end(text, match.end(), cased)
            if not _is_firm(text, match.start(), end):
                yield Hit(match.start(), end, "PERSON")

    def _capitals(self, text: str) -> Iterator[Hit]:
        """Yield the one word that a text without capitals writes with one, if nothing else has it.

        Brands and places are in the dictionary with a capital.
        """
        for match in WORD.finditer(text):
            word, lowered = match[0], match[0].casefold()
            alone = (
                word[0].isupper()
                and word[1:].islower()
                and not _START.search(text, 0, match.start())
            )
            if alone and self.words.is_strange(lowered) and not is_ordinary(word):
                yield Hit(match.start(), match.end(), "PERSON")

    def _family_end(self, text: str, end: int, cased: bool) -> int:
        """Return the end of a name: up to two more words, capitalised or in no dictionary."""
        for _ in range(2):
            following = (_FAMILY if cased else _FAMILY_UNCASED).match(text, end)
            if following is None:
                break
            lowered = following[1].rstrip(".").casefold()
            # "Peter Long", but no date ("Peter May 5").
            named = cased and self._is_family(lowered) and not _DATED.match(text, following.end(1))
            if not named and (lowered in self.words.not_people or lowered in self.words.common):
                break
            everyday = self.words.is_everyday(lowered)
            last = _ENDS_HERE.match(text, following.end(1)) and lowered not in FILLER
            family = (
                (last or not everyday) if self.words.is_listed(lowered) else last and not everyday
            )
            if not cased and not family and is_ordinary(lowered.split("-")[0]):
                break
            end = following.end(1)
        return end

    def _name_at(
        self, text: str, start: int, end: int, named: Callable[[str], bool], cased: bool
    ) -> Hit | None:
        """Return the name at the beginning of a run of words, None if there is none."""
        stop = start = self._after_lead(text, start, end)
        for word in re.finditer(r"\S+", text[start:end]):
            bare = word[0].strip(".,'’")
            lowered = bare.casefold()
            known = self.words.is_given(lowered)
            stem = lowered.replace("’", "'").split("'")[0]
            ordinary = stem in self.words.not_people or (lowered in self.words.common and not known)
            # After a title even a word of every day is a name ("Mr May").
            titled = stop == start and (
                (named == self._titled and (cased or self._is_family(lowered)))
                or (named == self._speaker and named(lowered))
            )
            if cased and lowered in _PARTICLES and bare[0].islower():
                continue
            if not bare or (ordinary and not titled) or lowered in self._allow:
                break
            if cased and not bare[0].isupper():
                break
            # In edited text a name may be one letter away from a word.
            sure = named != self.words.is_given and cased and not is_ordinary(lowered)
            if stop == start and _INITIAL.fullmatch(word[0]):
                continue
            if stop == start and not named(lowered) and not sure:
                break
            last = start + word.start() + len(word[0].rstrip(".,'’"))
            closes = not self.words.is_everyday(lowered) and _ENDS_HERE.match(text, last)
            initial = len(bare) == 1 and (cased or lowered not in _LETTER_WORDS)
            if stop > start and not (
                cased or known or initial or closes or self.words.is_strange(lowered)
            ):
                break
            stop = last
            if word[0][-1] in ",;:!?" or (word[0][-1] == "." and len(bare) > 2):
                break
        if stop <= start or _is_firm(text, start, stop):
            return None
        return Hit(start, stop, "PERSON")

    def _after_lead(self, text: str, start: int, end: int) -> int:
        """Return where a name begins after a title or the word for who speaks."""
        speaker = _SPEAKER.match(text, start)
        if speaker and is_ordinary(speaker[1].casefold()) and _START.search(text, 0, start):
            start = min(speaker.end(), end)
        title = _TITLE.match(text, start, end)
        return title.end() if title else start

    def _cased(self, text: str) -> str:
        """Return a text without case as an editor would write it, with capitals for names."""
        if not lacks_case(text):
            return text

        def write(match: re.Match[str]) -> str:
            word = match[0].lower()
            known = self.words.is_given(word) and word not in self.words.also_words
            plain = is_ordinary(word) or word in self.words.common or word in self.words.not_names
            if known or not plain or _START.search(text, 0, match.start()) or word == "i":
                return word[0].upper() + word[1:]
            return word

        title = _LETTERS.sub(write, text)
        return title if len(title) == len(text) else text

    def _recognised(self, text: str, doc: Any) -> Iterator[Hit]:
        retitled = doc.text != text
        for entity in doc.ents:
            start, end = _trim(text, entity.start_char, entity.end_char)
            start = _after_kin(text, self._after_lead(text, start, end), end)
            words = [word.casefold() for word in _LETTERS.findall(text[start:end])]
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
            if self._is_abbreviation(text, start, end):
                continue
            if not retitled and text[start:end].islower() and not self.words.is_given(words[0]):
                continue
            if retitled and self._counts(words, text[end : end + 2]):
                continue
            first = _START.search(text, 0, start) is not None
            place = label == "LOCATION"
            placed = place and bool(_PLACE_CUE.search(text, 0, start))
            if not self._unusual(words, retitled, first, place, placed):
                continue
            if label == "PERSON":
                other = _is_firm(text, start, end) or _ends_place(text, start)
                if other or not self._several(words):
                    continue
                initials = _INITIALS_BEFORE.search(text, 0, start)
                start = initials.start() if initials else start
                end = self._family_end(text, end, cased=False) if retitled else end
            yield Hit(start, end, label)

    def _is_abbreviation(self, text: str, start: int, end: int) -> bool:
        """Return True if the one word of a name has capitals only, and the text has not."""
        said = text[start:end]
        short = _ABBREVIATION.fullmatch(said) is not None and not text.isupper()
        return short and not (len(said) > 3 and self.words.is_given(said.casefold()))

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

    def _is_family(self, word: str) -> bool:
        """Return True if a lower-case word is a listed name, and no title or filler."""
        return self.words.is_listed(word) and word not in FILLER

    def _several(self, words: Sequence[str]) -> bool:
        """Return True unless one of several words is no name's ("Norton Peak Software")."""
        known = any(self.words.is_given(w) and w not in self.words.also_words for w in words)
        return known or not any(
            len(word) > 2 and is_ordinary(word) and not self.words.is_listed(word) for word in words
        )


def _after_kin(text: str, start: int, end: int) -> int:
    """Return where a name begins after the word for a relative before it ("son Kacper")."""
    word = _LETTERS.match(text, start, end)
    if word is None or word[0].casefold() not in _KIN:
        return start
    return min(word.end() + 1, end)


def _is_firm(text: str, start: int, end: int) -> bool:
    """Return True if a name holds or precedes a word for a firm ("Norton Peak Software")."""
    return bool(_FIRM.match(text, end) or _FIRM.search(text, start, end))


def _ends_place(text: str, start: int) -> bool:
    """Return True if the name at `start` is the end of a place's ("San Francisco")."""
    return _IN_PLACES.search(text, max(0, start - _REACH), start) is not None


def _always(_: str) -> bool:
    return True


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out what does not belong to a name: possessive, punctuation, space."""
    piece = text[start:end]
    piece = re.sub(r"(?:['’]s)?[\W_]*$", "", piece)
    lead = len(piece) - len(piece.lstrip(" .,;:!?'\"()[]{}-\n"))
    return start + lead, start + len(piece)
