"""Find personal data in rows: by models, by patterns, and by the question that a turn answers."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import yaml

from tuneline.data.pii.find.copies import Piece, Places, agree
from tuneline.data.pii.find.dialogue import answers, birth_dates_in, expected
from tuneline.data.pii.find.entities import PLACES, Hit, Settings, resolve
from tuneline.data.pii.find.identifiers import find_identifiers, name_number
from tuneline.data.pii.find.models import EntityModel, load_entity_model
from tuneline.data.pii.find.patterns import find_patterns
from tuneline.data.pii.find.texts import Plain, Shared, Text, plain, texts_of
from tuneline.data.pii.find.token_model import UNSPACED, Word
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError, first_line

FIELD = "data.pii_recognizers"
# Characters of a text that a recogniser sees at once, whose patterns may backtrack, and those that
# neighbouring parts share.
PART, OVERLAP = 2_000, 200


class CustomRecognisers:
    """Presidio's analyzer with a user's patterns and lists; UserError if they can't be used.

    It reads tokens alone: no model is loaded.
    """

    def __init__(
        self, given: Sequence[str | Mapping[str, Any]], languages: Sequence[str], least_score: float
    ) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        except ImportError:
            raise UserError(
                f"{FIELD}: Presidio is not installed; .venv-ml/bin/pip install -r "
                "requirements/presidio.txt -c requirements/ml.constraints.txt, or build the image "
                "with EXTRAS=requirements/presidio.txt"
            ) from None
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        every = [made for entry in given for made in _load(entry)]
        served = {recogniser.supported_language for recogniser in every}
        self._languages = [language for language in languages if language in served]
        if not self._languages:
            raise UserError(
                f"{FIELD}: they serve {', '.join(sorted(served)) or 'no language'}, and "
                f"data.languages declares {', '.join(languages)}; set supported_language"
            )
        own = [one for one in every if one.supported_language in self._languages]
        self.entities = tuple(sorted({name for one in own for name in one.supported_entities}))
        self._analyzer = AnalyzerEngine(
            registry=RecognizerRegistry(own, supported_languages=self._languages),
            nlp_engine=_tokenizers(self._languages),
            supported_languages=self._languages,
            default_score_threshold=least_score,
        )

    def find(self, text: str) -> Iterator[Hit]:
        """Yield the hits of the recognisers of each language."""
        for at in range(0, max(1, len(text) - OVERLAP), PART - OVERLAP):
            for language in self._languages:
                for hit in self._analyzer.analyze(text[at : at + PART], language=language):
                    yield Hit(at + hit.start, at + hit.end, hit.entity_type)


def _tokenizers(languages: Sequence[str]) -> Any:
    """Make an NLP engine that only splits texts into words, so that context words are seen."""
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from spacy.language import Language

    def lowered(doc: Any) -> Any:
        for token in doc:
            token.lemma_ = token.lower_
        return doc

    Language.component("tuneline_lowered", func=lowered)
    engine: Any = SpacyNlpEngine([{"lang_code": code, "model_name": code} for code in languages])
    engine.nlp = {code: spacy.blank(code) for code in languages}
    for pipeline in engine.nlp.values():
        pipeline.add_pipe("tuneline_lowered")
    return engine


def _load(entry: str | Mapping[str, Any]) -> list[Any]:
    """Make the recognisers of a YAML file or of an entry that is written out."""
    try:
        if not isinstance(entry, str):
            return _written_out(entry)
        document = yaml.safe_load(Path(entry).read_text("utf-8"))
        if not isinstance(document, dict) or "recognizers" not in document:
            raise TypeError("it has no list `recognizers`, as Presidio's YAML files do")
        return [made for one in document["recognizers"] for made in _written_out(one)]
    except Exception as error:  # Presidio may raise anything
        named = entry if isinstance(entry, str) else entry.get("name", "an entry without a name")
        raise UserError(
            f"{FIELD}: {named!r} can't be loaded ({type(error).__name__}: {first_line(error)}); "
            "give a YAML file, or an entry as in Presidio's list `recognizers`"
        ) from None


def _written_out(entry: Mapping[str, Any]) -> list[Any]:
    """Make a recogniser for each language of an entry; none if the entry is not enabled."""
    from presidio_analyzer import PatternRecognizer

    settings = {"supported_language": "en", **entry}
    settings.pop("type", None)
    if settings.pop("enabled", True) is False:
        return []
    languages = settings.pop("supported_languages", None) or [settings["supported_language"]]
    made = []
    for language in languages:
        own = {"language": language} if isinstance(language, str) else dict(language)
        one = {**settings, "supported_language": own.pop("language"), **own}
        made.append(PatternRecognizer.from_dict(one))
    return made


# Least score (1 - P(O)) of a word by group of types. They cost least
# on half of the labelled rows of docs/decisions/0052-personal-data-by-a-model.md, if a word of
# personal data that is left costs as much as five clean words that are changed.
THRESHOLDS = {"name": 0.15, "place": 0.3, "number": 0.3, "contact": 0.3}
# Of a word right beside one that reaches its own.
THRESHOLDS |= {"name_neighbour": 0.07, "place_neighbour": 0.05}
# How much the score counts that a word has before the answer that copies from its turn. It costs
# least on extraction rows, at the same price of a word.
WITH_ANSWER = 0.6
_GROUPS = dict.fromkeys(PLACES, "place")
_GROUPS |= {"PERSON": "name", "EMAIL_ADDRESS": "contact", "URL": "contact"}
_NO_NUMBERS = _GROUPS.keys() - {"STREET_ADDRESS", "POSTAL_CODE"}
# What stands between the parts of a value, and of an address: a few characters, or a unit that no
# model knows ("Apt.", "Suite", "and"), but not the end of a string in JSON.
_GAP = re.compile(r"[ ()/+'.-]{0,3}")
_WITHIN = re.compile(r"(?s)[^\"]{0,4}|(?=.{0,11}\Z)[\s,.>/?]*[^\W\d_]+\.?\s*")
# "40 x 30 x 15" is no address.
_SUM = re.compile(r"[\d\s.,]+[x×=+*][\d\sx×.,=+*/-]*")
# Characters from a street or city in which a number is part of an address, one of few digits too.
_APART, _NEAR, _FEW_DIGITS = 4, 40, 5
# A number of four or five digits is a code rather than a quantity in a text of so few characters.
_SHORT = 60
# What stands before a price, and after a quantity.
_PAID = re.compile(
    r"(?i)[$€£]\Z|\b(?:paid|pay|costs?|price|amount|total|limit|worth|charged?|spent|preis|bezahlt|"
    r"kostet|prix|payé|coûte|precio|cuesta|pagué)(?:\W+\w+){0,2}\W+$"
)
_UNIT_OF = re.compile(
    r"(?i)\s?(?:dollars?|euros?|bucks|usd|eur|gbp|pounds?|rupees|rs|[€£%]|k[gm]?|gb|mb|mah|cc|miles|"
    r"points|steps|people|pieces|items|times|days|hours)\b"
)
_IN_UNSPACED = re.compile(f"[{UNSPACED}]")
_YEAR = re.compile(r"(?:19|20)\d\d")
# Texts that are remembered, up to a length: chats repeat short ones.
REMEMBERED, LONGEST = 20_000, 2_000
# A short number as an answer, of which nothing but the turns before can say what it is.
_NUMBER = re.compile(r"-?[\d.]{1,8}")


class Detector:
    """A detector of what its settings name; UserError if a model or recogniser can't be loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        own = (settings.recognizers, settings.languages, settings.least_score)
        self._custom = CustomRecognisers(*own) if settings.recognizers else None
        # Types that the user's own recognisers find, and labels of the models that name no type.
        self.custom_entities: tuple[str, ...] = self._custom.entities if self._custom else ()
        self._wanted = frozenset((*settings.entities, *self.custom_entities))
        self._models: list[EntityModel] = [
            load_entity_model(path, self._wanted, settings.labels, shifted=settings.shifted)
            for path in settings.models
        ]
        ignored = {label for model in self._models for label in model.ignored}
        self.ignored_labels = tuple(sorted(ignored))
        self._read: dict[str, Sequence[Word]] = {}
        self._shaped = lru_cache(maxsize=REMEMBERED)(self._shapes)

    def shapes(self, text: str) -> tuple[Hit, ...]:
        """Find values by their form or by a cue word, without a model."""
        seen = plain(text)
        return self._final(text, seen, self._shaped_of(seen.text))

    def rows(
        self, batch: Sequence[Sequence[Message]], shared: Shared
    ) -> list[Mapping[str, tuple[Hit, ...]]]:
        """Return each row's hits by text, in order; no model reads what the rows share."""
        pieces = [texts_of(messages, self._settings.label_field) for messages in batch]
        # What models read of each text, and the number of characters before it.
        parts: dict[str, tuple[str, int]] = {}
        for messages, own in zip(batch, pieces, strict=True):
            for turn, text in own:
                if text not in parts and messages[turn]["content"] not in shared.systems:
                    user = messages[turn]["role"] == "user"
                    start, end = shared.affixes.cut(text) if user else (0, len(text))
                    parts[text] = plain(text[start:end]).text, len(plain(text[:start]).text)
        pairs = list(zip(batch, pieces, strict=True))
        with_answers = [_with_answers(messages, own, parts) for messages, own in pairs]
        every = chain(
            (part for part, _ in parts.values()), *(some.values() for some in with_answers)
        )
        read = self._words(dict.fromkeys(every))
        rows = []
        for (messages, own), more in zip(pairs, with_answers, strict=True):
            words = {}
            for text, (part, by) in ((text, parts[text]) for _, text in own if text in parts):
                mean = _read_twice(read[part], read[more[text]]) if text in more else read[part]
                words[text] = [w._replace(start=w.start + by, end=w.end + by) for w in mean]
            rows.append(self._row(messages, own, words))
        return rows

    def _row(
        self, messages: Sequence[Message], own: Sequence[Text], words: Mapping[str, Sequence[Word]]
    ) -> Mapping[str, tuple[Hit, ...]]:
        asked = expected(messages)
        texts = {text: plain(text) for _, text in own}
        pieces: dict[str, Piece] = {}
        for turn, text in own:
            if text not in pieces:
                answer = messages[turn]["role"] == "assistant"
                pieces[text] = Piece(turn, texts[text].text, words.get(text, ()), answer)
            pieces[text].asked |= asked[turn]
        places = Places(pieces.values())
        for piece in pieces.values():
            piece.copies = [*places.copies(piece)]
            piece.hits = self._resolved(self._found(piece, places))
        births = {
            p.text[h.start : h.end]
            for p in pieces.values()
            for h in p.hits
            if h.entity == "BIRTH_DATE"
        }
        for piece in pieces.values() if births else ():
            piece.hits = self._resolved([*piece.hits, *birth_dates_in(piece.text, births)])
        agree([*pieces.values()])
        made = {text: self._final(text, texts[text], p.hits) for text, p in pieces.items()}
        return {text: final for text, final in made.items() if final}

    def _found(self, piece: Piece, places: Places) -> Iterator[Hit]:
        """Yield what is found in a piece alone; a short number as an answer says nothing."""
        if not (piece.answer and _NUMBER.fullmatch(piece.text)):
            shaped = self._shaped_of(piece.text)
            yield from shaped
            yield from read_words(piece.text, [*_outside([*places.own_words(piece)], shaped)])
            yield from answers(piece.text, piece.asked, piece.words)

    def _resolved(self, hits: Iterable[Hit]) -> list[Hit]:
        return resolve(hit for hit in hits if hit.entity in self._wanted)

    def _final(self, text: str, seen: Plain, hits: Iterable[Hit]) -> tuple[Hit, ...]:
        """Return the hits in the original text that are not on the allow-list."""
        placed = (Hit(*seen.span(hit.start, hit.end), hit.entity) for hit in hits)
        allow = self._settings.allow
        return tuple(hit for hit in placed if text[hit.start : hit.end].casefold() not in allow)

    def _shaped_of(self, text: str) -> tuple[Hit, ...]:
        return self._shaped(text) if len(text) <= LONGEST else self._shapes(text)

    def _shapes(self, text: str) -> tuple[Hit, ...]:
        hits = [*find_identifiers(text), *find_patterns(text, self._wanted)]
        if self._custom is not None and text.strip():
            hits += self._custom.find(text)
        return tuple(self._resolved(hits))

    def _words(self, texts: Collection[str]) -> dict[str, Sequence[Word]]:
        """Return the words of each text that the models take for personal data."""
        found = {text: self._read.get(text, ()) for text in texts}
        new = [text for text in texts if text not in self._read] if self._models else []
        if new:
            if len(self._read) + len(new) > REMEMBERED:
                self._read.clear()
            every = zip(*(model.words(new) for model in self._models), strict=True)
            for text, some in zip(new, every, strict=True):
                found[text] = sorted(
                    word
                    for words in some
                    for word in words
                    if self._settings.unspaced or not _IN_UNSPACED.match(text, word.start)
                )
                if len(text) <= LONGEST:
                    self._read[text] = found[text]
        return found


def _with_answers(
    messages: Sequence[Message], own: Sequence[Text], parts: Mapping[str, tuple[str, int]]
) -> dict[str, str]:
    """Return questions followed by the answer, where its values are copied from the question."""
    values: defaultdict[int, list[str]] = defaultdict(list)
    for turn, text in own:
        values[turn].append(text)
    found: dict[str, str] = {}
    for turn, (asked, answer) in enumerate(pairwise(messages), 1):
        text, said = asked["content"], answer["content"]
        copied = values[turn] != [said] and any(value in text for value in values[turn])
        if copied and text in parts and len(text) + len(said) <= LONGEST:
            found[text] = f"{parts[text][0]}\n{plain(said).text}"
    return found


def _read_twice(alone: Sequence[Word], before_answer: Sequence[Word]) -> Iterator[Word]:
    """Yield words by both scores: the names of an answer's fields tell a brand from a person."""
    scores = {word.start: word.score for word in before_answer}
    for word in alone:
        both = (1 - WITH_ANSWER) * word.score + WITH_ANSWER * scores.get(word.start, 0.0)
        yield word._replace(score=both)


def _outside(words: Sequence[Word], hits: Sequence[Hit]) -> Iterator[Word]:
    """Yield the words that lie in no hit."""
    for word in words:
        at = bisect_left(hits, word.end, key=lambda hit: hit.end)
        if at == len(hits) or hits[at].start > word.start:
            yield word


def read_words(text: str, words: Sequence[Word]) -> Iterator[Hit]:
    """Yield the hits that the words of a model make.

    What it takes for a house number or postal code, such as a PIN, is one only near a place.
    """

    def said(word: Word) -> str:
        return text[word.start : word.end]

    def digits(one: Word, other: Word) -> bool:
        number = _is_number(said(one), one) and _is_number(said(other), other)
        return number and _GAP.fullmatch(text, one.end, other.start) is not None

    kept = list(_surer(text, words))
    streets = [word for word in kept if word.entity in PLACES and any(map(str.isalpha, said(word)))]
    groups = _runs(kept, digits)
    named = [word for group in groups for word in _number(text, group, streets)]
    for run in _runs(named, partial(_joins, text)):
        yield from _run(text, run)


def _runs(words: Iterable[Word], joins: Callable[[Word, Word], bool]) -> Iterator[list[Word]]:
    """Yield the runs of words each of which joins the one before."""
    run: list[Word] = []
    for word in words:
        if run and not joins(run[-1], word):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _surer(text: str, words: Sequence[Word]) -> Iterator[Word]:
    """Yield the words that reach their threshold, and weaker ones right beside such a word."""
    sure = [word.score >= THRESHOLDS[_group(word)] for word in words]
    for at, word in enumerate(words):
        near = word.score >= THRESHOLDS.get(f"{_group(word)}_neighbour", 1)
        if (
            sure[at]
            or (near and at > 0 and sure[at - 1] and _joins(text, words[at - 1], word))
            or (near and sure[at + 1 : at + 2] == [True] and _joins(text, word, words[at + 1]))
        ):
            yield word


def _group(word: Word) -> str:
    return _GROUPS.get(word.entity, "number")


def _is_number(said: str, word: Word) -> bool:
    return any(map(str.isdecimal, said)) and word.entity not in _NO_NUMBERS


def _number(text: str, group: Sequence[Word], streets: Sequence[Word]) -> Iterable[Word]:
    """Return a group of digits as parts of an address near one, as a number, or not at all."""
    start, end = group[0].start, group[-1].end
    if not _is_number(text[start:end], group[0]):
        return group
    at = bisect_left(streets, start, key=lambda street: street.start)
    near = (max(s.start - end, start - s.end) for s in streets[max(0, at - 1) : at + 1])
    few = sum(map(str.isdecimal, text[start:end])) <= _FEW_DIGITS
    placed = any(word.entity in PLACES for word in group)
    if few and _UNIT_OF.match(text, end):
        return ()
    if placed and min(near, default=_NEAR + 1) <= (_NEAR if few else _APART):
        return group
    if _YEAR.fullmatch(text, start, end) or (few and _is_quantity(text, start, end, placed)):
        return ()
    return [word._replace(entity="ID_NUMBER") for word in group]


def _is_quantity(text: str, start: int, end: int, placed: bool) -> bool:
    """Return True if a number of few digits counts something; `placed` if a model says address."""
    value, before = text[start:end], text[max(0, start - _NEAR) : start]
    code = value.isdecimal() and len(value) >= 4 and len(text) <= _SHORT
    return value.endswith("00") or bool(_PAID.search(before)) or (placed and not code)


def _joins(text: str, one: Word, other: Word) -> bool:
    between = text[one.end : other.start]
    if one.entity in PLACES and other.entity in PLACES:
        return _WITHIN.fullmatch(between) is not None
    return _group(one) == _group(other) and _GAP.fullmatch(between) is not None


def _run(text: str, run: Sequence[Word]) -> Iterator[Hit]:
    start, end = run[0].start, run[-1].end
    kinds = {word.entity for word in run}
    if "STREET_ADDRESS" in kinds and kinds <= PLACES:
        # A single word without a number is "card" rather than a street.
        single = len(run) == 1 and not any(map(str.isdecimal, text[start:end]))
        if not single and not _SUM.fullmatch(text, start, end):
            yield Hit(start, end, "STREET_ADDRESS")
    elif kinds <= PLACES:
        for word in run:
            digits = sum(map(str.isdecimal, text[word.start : word.end]))
            # Beside a word that looks like a city four digits are a PIN as well.
            code = word.entity == "POSTAL_CODE" and digits > 3 and (digits != 5 or len(kinds) == 1)
            yield Hit(word.start, word.end, "ID_NUMBER" if code else word.entity)
    else:
        number = _group(run[0]) == "number"
        yield Hit(start, end, name_number(text, start, end) if number else run[0].entity)
