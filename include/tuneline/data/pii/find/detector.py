"""Find personal data in rows: by models, by patterns, and by the question that a turn answers."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from tuneline.data.pii.find.custom import CustomRecognisers
from tuneline.data.pii.find.dialogue import answers, repeated, topics_of
from tuneline.data.pii.find.entities import ENTITIES, Hit, Settings
from tuneline.data.pii.find.identifiers import find_identifiers, name_number
from tuneline.data.pii.find.models import EntityModel, load_entity_model
from tuneline.data.pii.find.patterns import find_patterns
from tuneline.data.pii.find.texts import Shared, plain, texts_of
from tuneline.data.pii.find.token_model import Word
from tuneline.data.tables.rows import Message

# Least score of a word by group of types.
THRESHOLDS = {"name": 0.3, "place": 0.3, "number": 0.3, "contact": 0.3}
_GROUPS = {
    "PERSON": "name",
    "STREET_ADDRESS": "place",
    "LOCATION": "place",
    "POSTAL_CODE": "place",
    "EMAIL_ADDRESS": "contact",
    "URL": "contact",
}
_PLACES = frozenset({"STREET_ADDRESS", "LOCATION", "POSTAL_CODE"})
# Characters between the parts of one address, and what stands between the words of others.
_APART = 4
_GAP = re.compile(r"[ ()/+'.-]{0,3}")
# A plain number of so few digits is a house number or postal code only near a street or city.
_LONE = re.compile(r"\d{1,5}(?:[.,]\d{1,2})?")
_NEAR = 40
# Texts that are remembered, up to a length: chats repeat short ones.
REMEMBERED, LONGEST = 20_000, 2_000
_RANK = {entity: rank for rank, entity in enumerate(ENTITIES)}


class Detector:
    """A detector of personal data.

    Args:
        settings: what to look for.

    Attributes:
        custom_entities: types that the user's own recognisers find.
        ignored_labels: labels of the models that name nothing that is looked for.

    Raises:
        UserError: if a model or recogniser can't be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._custom = None
        if settings.recognizers:
            self._custom = CustomRecognisers(
                settings.recognizers, settings.languages, settings.least_score
            )
        self.custom_entities: tuple[str, ...] = self._custom.entities if self._custom else ()
        self._wanted = frozenset((*settings.entities, *self.custom_entities))
        self._models: list[EntityModel] = [
            load_entity_model(path, self._wanted, settings.labels, shifted=settings.shifted)
            for path in settings.models
        ]
        ignored = (label for model in self._models for label in model.ignored)
        self.ignored_labels: tuple[str, ...] = tuple(sorted(set(ignored)))
        self._read: OrderedDict[str, tuple[Word, ...]] = OrderedDict()
        self._shaped = lru_cache(maxsize=REMEMBERED)(self._shapes)

    def shapes(self, text: str) -> tuple[Hit, ...]:
        """Find what has a form or a cue of its own; no model is asked."""
        seen = plain(text)
        return self._final(
            text, [Hit(*seen.span(h.start, h.end), h.entity) for h in self._shaped_of(seen.text)]
        )

    def rows(
        self, batch: Sequence[Sequence[Message]], shared: Shared
    ) -> list[Mapping[str, tuple[Hit, ...]]]:
        """Find everything in some rows, each distinct text of which a model reads once.

        Args:
            batch: turns of each row.
            shared: parts that rows share, which no model reads.

        Returns:
            For each row its texts (see `texts_of`) in which something was found, with the hits:
            in order, without overlaps, of wanted types, without what is allowed.
        """
        pieces = [texts_of(messages, self._settings.label_field) for messages in batch]
        read = {}
        for messages, own in zip(batch, pieces, strict=True):
            for piece in own:
                if messages[piece.turn]["content"] not in shared.systems:
                    read[piece.text] = plain(piece.text)
        words = self._words([seen.text for seen in read.values()])
        return [
            self._row(messages, own, words) for messages, own in zip(batch, pieces, strict=True)
        ]

    def _row(self, messages, own, words) -> Mapping[str, tuple[Hit, ...]]:
        topics = frozenset()
        expected: dict[int, frozenset[str]] = {}
        for turn, message in enumerate(messages):
            if message["role"] == "user":
                expected[turn] = topics
            topics = (
                topics_of(message["content"]) if message["role"] == "assistant" else frozenset()
            )
        texts = {piece.text: plain(piece.text) for piece in own}
        found: dict[str, list[Hit]] = {}
        for piece in own:
            seen = texts[piece.text].text
            hits = found.setdefault(seen, [])
            if not hits:
                hits += self._shaped_of(seen)
                hits += read_words(seen, words.get(seen, ()))
            hits += answers(seen, expected.get(piece.turn, frozenset()), words.get(seen, ()))
        values = {
            text[hit.start : hit.end]: hit.entity
            for text, hits in found.items()
            for hit in resolve(text, hits)
            if hit.entity not in ("LOCATION", "DATE", "AGE_OVER_89") and hit.end - hit.start > 3
        }
        for text, hits in repeated(values, found, words).items():
            found[text] += hits
        made = {}
        for text, seen in texts.items():
            hits = resolve(seen.text, found[seen.text])
            final = self._final(text, [Hit(*seen.span(h.start, h.end), h.entity) for h in hits])
            if final:
                made[text] = final
        return made

    def _final(self, text: str, hits: Iterable[Hit]) -> tuple[Hit, ...]:
        """Return the hits of wanted types that are not on the allow-list."""
        allow = self._settings.allow
        return tuple(
            hit
            for hit in hits
            if hit.entity in self._wanted and text[hit.start : hit.end].casefold() not in allow
        )

    def _shaped_of(self, text: str) -> tuple[Hit, ...]:
        return self._shaped(text) if len(text) <= LONGEST else self._shapes(text)

    def _shapes(self, text: str) -> tuple[Hit, ...]:
        hits = [*find_identifiers(text), *find_patterns(text, self._wanted)]
        if self._custom is not None and text.strip():
            hits += self._custom.find(text)
        return tuple(resolve(text, hits))

    def _words(self, texts: Sequence[str]) -> dict[str, tuple[Word, ...]]:
        """Return the words of each text that the models take for personal data."""
        known = {text: self._read[text] for text in texts if text in self._read}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new and self._models:
            every = zip(*(model.words(new) for model in self._models), strict=True)
            for text, some in zip(new, every, strict=True):
                known[text] = tuple(word for words in some for word in words)
                if len(text) <= LONGEST:
                    self._read[text] = known[text]
            while len(self._read) > REMEMBERED:
                self._read.popitem(last=False)
        return known


def read_words(text: str, words: Sequence[Word]) -> Iterator[Hit]:
    """Yield the hits that the words of a model make."""
    kept = [
        word._replace(entity=_kind(text, word))
        for word in words
        if word.score >= THRESHOLDS[_GROUPS.get(_kind(text, word), "number")]
    ]
    lettered = [
        word
        for word in kept
        if word.entity in _PLACES and any(map(str.isalpha, text[word.start : word.end]))
    ]
    kept = [word for word in kept if not _is_lone(text, word, lettered)]
    run: list[Word] = []
    for word in kept:
        if run and not _joins(text, run[-1], word):
            yield from _run(text, run)
            run = []
        run.append(word)
    if run:
        yield from _run(text, run)


def _kind(text: str, word: Word) -> str:
    if word.entity in ("STREET_ADDRESS", "POSTAL_CODE"):
        if sum(map(str.isdigit, text[word.start : word.end])) > 5:
            return "ID_NUMBER"
    return word.entity


def _is_lone(text: str, word: Word, lettered: Sequence[Word]) -> bool:
    if word.entity not in ("STREET_ADDRESS", "POSTAL_CODE"):
        return False
    if not _LONE.fullmatch(text[word.start : word.end]):
        return False
    return not any(
        other.start - word.end <= _NEAR and word.start - other.end <= _NEAR for other in lettered
    )


def _joins(text: str, one: Word, other: Word) -> bool:
    if one.entity in _PLACES and other.entity in _PLACES:
        return other.start - one.end <= _APART
    group = _GROUPS.get(one.entity, "number")
    return group == _GROUPS.get(other.entity, "number") and bool(
        _GAP.fullmatch(text[one.end : other.start])
    )


def _run(text: str, run: Sequence[Word]) -> Iterator[Hit]:
    start, end = run[0].start, run[-1].end
    kinds = {word.entity for word in run}
    if kinds <= _PLACES:
        if "STREET_ADDRESS" in kinds:
            yield Hit(start, end, "STREET_ADDRESS")
        else:
            yield from (Hit(word.start, word.end, word.entity) for word in run)
    elif _GROUPS.get(run[0].entity, "number") == "number":
        yield Hit(start, end, name_number(text, start, end))
    else:
        yield Hit(start, end, run[0].entity)


def resolve(text: str, hits: Iterable[Hit]) -> list[Hit]:
    """Return hits without overlaps, in order."""
    ranked = sorted(set(hits), key=lambda h: (h.start, h.start - h.end))
    merged: list[Hit] = []
    for hit in ranked:
        if merged and hit.start < merged[-1].end:
            last = merged[-1]
            first = min(last, hit, key=lambda h: (_RANK.get(h.entity, len(_RANK)), h.start - h.end))
            merged[-1] = Hit(last.start, max(last.end, hit.end), first.entity)
        else:
            merged.append(hit)
    return merged
