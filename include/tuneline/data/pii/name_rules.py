"""Find the names of people by rules: by words that introduce them, initials and lists of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

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
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.words import is_ordinary

LETTERS = re.compile(r"[^\W\d_]+")
START = re.compile(r"(?:^|[.!?\n]\s*)[\"'(]*$")
# "J. Miller".
_INITIAL = re.compile(r"[^\W\d_]\.")
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
_PAIR = re.compile(
    r"(?<![\w.'’-])(?<![A-Z][a-z] )([A-ZÀ-Þ][a-zà-ÿ]{2,}) ([A-ZÀ-Þ][a-zà-ÿ'’-]{2,})"
    r"(?= ?[,.;:|()\"”]|\W*$)"
)
# "Van der Merwe", "von Essen": no word for a car stands before these.
_WITH_PARTICLE = re.compile(
    r"(?<![\w.'’-])(?:(?P<given>[A-ZÀ-Þ][\w'’-]+) |(?<!the )(?<!a )(?<!our )(?<!my ))"
    r"(?:[Vv]an (?:der|den|de|het|ten) |van |[Vv]on (?:der |dem )?|de la |dos |della )"
    r"[A-ZÀ-Þ][a-zà-ÿ][\w'’-]+"
)
# "Mei-Ling".
_DOUBLE = re.compile(r"(?<![\w@.-])[A-ZÀ-Þ][a-zà-ÿ]+-[A-ZÀ-Þa-zà-ÿ][a-zà-ÿ]+(?![\w@-])")
# Months, seasons and titles, which names are made of as well.
_NO_GIVEN = frozenset("april may june august summer autumn winter christian king prince".split())
# At the end of what is said, even an everyday word is a family name ("ivan king").
_ENDS_HERE = re.compile(r"\W*$|[,;.!?]|\n| [(+]?\d")
_WORD_BEFORE = re.compile(r"(?<![\w@.'’-])([^\W\d_]{3,}) (?:[^\W\d_]\.? )?$")
_TITLE = re.compile(
    r"(?:mr|mrs|ms|mx|miss|dr|prof|sir|madam|frau|herr|madame|mme|signora|se[nñ]ora?)\b\.?\s+",
    re.IGNORECASE,
)
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
# An abbreviation, where others have small letters ("SIM", "IRS").
_ABBREVIATION = re.compile(r"[A-Z]{2,5}")
# Characters before a name in which they are looked for.
_REACH = 24
# One letter that stands for a word in chat ("and", "with", "you").
_LETTER_WORDS = frozenset("n w u r b k y c x".split())


class NameRules:
    """Rules for the names of people in English texts.

    Args:
        words: names and ordinary words.
        allow: texts that are never names, in lower case.
    """

    def __init__(self, words: NameWords, allow: frozenset[str]) -> None:
        self.words = words
        self._allow = allow
        # Looking for words is faster than for cues. After some cues only certain words are names.
        self._cues: tuple[tuple[frozenset[str], Caseless, Callable[[str], bool]], ...] = (
            (TITLES, TITLE_CUE, self._titled),
            (SURE_CUE_WORDS, SURE_CUE, _always),
            (PERSON_CUE_WORDS, PERSON_CUE, self._known_or_strange),
            (NICKNAME_CUE_WORDS, NICKNAME_CUE, self._nickname),
            (ROLE_CUE_WORDS, ROLE_CUE, self._named_in_role),
            (TAIL_WORDS, PERSON_TAIL, self._known_or_strange),
            (frozenset({"speaking"}), SPEAKING, self._speaker),
        )

    def find(self, text: str) -> Iterator[Hit]:
        """Yield the people of a text; hits may overlap."""
        words = set(LETTERS.findall(text.casefold()))
        known = any(map(self.words.is_known, words))
        cased = not lacks_case(text)
        yield from self._by_cues(text, words, cased, known=known)
        yield from self._by_shape(text, cased=cased)
        # Most texts hold no known given name.
        if known:
            yield from self._introduced(text, WEAK_CUE, self.words.is_given, cased)
            yield from self._listed(text, cased)

    def with_given(self, text: str, hit: Hit) -> Hit:
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

    def _by_cues(self, text: str, words: set[str], cased: bool, *, known: bool) -> Iterator[Hit]:
        """Yield the people that a cue introduces.

        Args:
            text: any text.
            words: its words in lower case.
            cased: True if it has capitals where others have.
            known: True if a known name is among them.
        """
        for triggers, cue, named in self._cues:
            if not words.isdisjoint(triggers):
                yield from self._introduced(text, cue, named, cased)
        told = known or not words.isdisjoint(self.words.names_as_words)
        if told and not words.isdisjoint(CALLED_CUE_WORDS):
            yield from self._introduced(text, CALLED_CUE, self._named_as_word, cased)

    def _by_shape(self, text: str, *, cased: bool) -> Iterator[Hit]:
        """Yield the people that capitals and initials show."""
        if cased:
            yield from self._of_parts(text)
            yield from self._of_words(text)
        elif not text[1:].islower():
            yield from self._capitals(text)
        if not cased and "." not in text:
            return
        for match in (_INITIALED_CASED if cased else _INITIALED).finditer(text):
            word = match[1].casefold()
            listed = cased and self.words.is_listed(word) and not self.words.is_everyday(word)
            if listed or self.words.is_strange(word):
                yield Hit(match.start(), match.end(), "PERSON")

    def _of_parts(self, text: str) -> Iterator[Hit]:
        """Yield family names with a particle, and given names of two parts."""
        for match in _WITH_PARTICLE.finditer(text):
            given = match["given"]
            whole = given is None or not self.words.is_everyday(given.casefold())
            start = match.start() if whole else match.end("given") + 1
            if not is_firm(text, start, match.end()):
                yield Hit(start, match.end(), "PERSON")
        for match in _DOUBLE.finditer(text):
            if self.words.is_double_given(match[0].casefold()):
                end = self.family_end(text, match.end(), cased=True)
                if not is_firm(text, match.start(), end):
                    yield Hit(match.start(), end, "PERSON")

    def _of_words(self, text: str) -> Iterator[Hit]:
        """Yield given and family names side by side that are words as well ("Mark Long, 14")."""
        for match in _PAIR.finditer(text):
            first, last = match[1].casefold(), match[2].casefold()
            given = self.words.is_listed_given(first) and first not in _NO_GIVEN
            family = self.words.is_listed(last) and last not in FILLER | _NO_GIVEN
            if given and family and not is_firm(text, match.start(), match.end()):
                yield Hit(match.start(), match.end(), "PERSON")

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
            if self.is_abbreviation(text, *match.span()):
                continue
            if ends_place(text, match.start()):
                continue
            end = self.family_end(text, match.end(), cased)
            if not is_firm(text, match.start(), end):
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
                and not START.search(text, max(0, match.start() - 24), match.start())
            )
            if alone and self.words.is_strange(lowered) and not is_ordinary(word):
                yield Hit(match.start(), match.end(), "PERSON")

    def family_end(self, text: str, end: int, cased: bool) -> int:
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
        stop = start = self.after_lead(text, start, end)
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
        if stop <= start or is_firm(text, start, stop):
            return None
        return Hit(start, stop, "PERSON")

    def after_lead(self, text: str, start: int, end: int) -> int:
        """Return where a name begins after a title or the word for who speaks."""
        speaker = _SPEAKER.match(text, start)
        if (
            speaker
            and is_ordinary(speaker[1].casefold())
            and START.search(text, max(0, start - 24), start)
        ):
            start = min(speaker.end(), end)
        title = _TITLE.match(text, start, end)
        return title.end() if title else start

    def is_abbreviation(self, text: str, start: int, end: int) -> bool:
        """Return True if the one word of a name has capitals only, and the text has not."""
        said = text[start:end]
        short = _ABBREVIATION.fullmatch(said) is not None and not text.isupper()
        return short and not (len(said) > 3 and self.words.is_given(said.casefold()))

    def _is_family(self, word: str) -> bool:
        """Return True if a lower-case word is a listed name, and no title or filler."""
        return self.words.is_listed(word) and word not in FILLER


def is_firm(text: str, start: int, end: int) -> bool:
    """Return True if a name holds or precedes a word for a firm ("Norton Peak Software")."""
    return bool(_FIRM.match(text, end) or _FIRM.search(text, start, end))


def ends_place(text: str, start: int) -> bool:
    """Return True if the name at `start` is the end of a place's ("San Francisco")."""
    return _IN_PLACES.search(text, max(0, start - _REACH), start) is not None


def _always(_: str) -> bool:
    return True
