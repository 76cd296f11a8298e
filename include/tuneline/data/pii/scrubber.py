"""Replace the personal data in the turns of rows by surrogates, batch by batch.

Inside a row the same value gets the same surrogate in every turn. A JSON answer stays valid JSON:
its strings are scrubbed one by one, its label is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice, tee
from pathlib import Path

from tuneline.config import DataConfig
from tuneline.data.pii.answers import answers, bare_name
from tuneline.data.pii.births import births_after
from tuneline.data.pii.dialogue import repeated_values, wanted
from tuneline.data.pii.entities import NER_ENTITIES, Recogniser, common_words
from tuneline.data.pii.languages import ENGLISH, foreign_language, likeliest
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.ner.entity_model import EntityModel
from tuneline.data.pii.ner.fetched import fetch_entity_model, load_entity_model
from tuneline.data.pii.numbers import alike, frequent_numbers, identifiers
from tuneline.data.pii.patterns import PATTERN_ENTITIES, Hit, find, resolve
from tuneline.data.pii.presidio import CustomRecognisers
from tuneline.data.pii.residuals import Find, overlaps, places, residual_hits
from tuneline.data.pii.safe_harbor import DEMANDED_ONLY
from tuneline.data.pii.settings import Settings, settings_of
from tuneline.data.pii.shared_parts import Shared, shared_parts
from tuneline.data.pii.surrogates import Surrogates
from tuneline.data.pii.turns import Segment, map_turn, segments
from tuneline.data.pii.workers import map_chunks
from tuneline.data.tables.rows import Message, StandIn
from tuneline.errors import UserError

MAX_PASSES = 3
# Rows that a worker gets at once. The number is fixed: the batches of a model must not depend on
# the number of workers.
CHUNK = 512
# Texts repeat in chat data; the hits of this many are remembered.
REMEMBERED = 10_000


@dataclass
class Scrubbed:
    """A scrubbed row.

    Attributes:
        messages: turns of the row.
        surrogates: spans of the surrogates in them.
        hits: number of hits by entity.
        residual: number of pattern hits that are left.
        refused: entities for which the row is to be rejected.
        foreign: undeclared language or script of the row.
    """

    messages: list[Message]
    surrogates: tuple[StandIn, ...] = ()
    hits: Counter[str] = field(default_factory=Counter)
    residual: int = 0
    refused: tuple[str, ...] = ()
    foreign: str | None = None


_Keyed = tuple[str, Sequence[Message]]
_Chunk = Sequence[_Keyed]
# The row where anything was found in it, and its undeclared language: clean rows stay here.
_Outcome = tuple[Scrubbed | None, str | None]
_Work = Callable[[_Chunk], list[_Outcome]]


class Scrubber:
    """A scrubber of batches of rows.

    Args:
        settings: what to look for and what to do about it.

    Raises:
        UserError: if a model or recogniser can't be loaded, or an action names an unknown entity.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._custom = None
        if settings.recognizers:
            self._custom = CustomRecognisers(
                settings.recognizers, settings.languages, settings.least_score
            )
        self.custom_entities = self._custom.entities if self._custom else ()
        known = (*PATTERN_ENTITIES, *DEMANDED_ONLY, *NER_ENTITIES, *self.custom_entities)
        unknown = settings.actions.keys() - set(known)
        if unknown:
            raise UserError(
                f"data.pii_actions: no entity is called {', '.join(sorted(unknown))}; there are "
                + ", ".join(known)
            )
        self._masked = settings.entities_with("mask")
        self._refused = settings.entities_with("reject_row")
        self._recognisers = _recognisers(settings)
        models = (recogniser.ignored_labels for recogniser in self._recognisers.values())
        self.ignored_labels = next(models, ())
        self.find = lru_cache(maxsize=REMEMBERED)(self._find)
        self._answers = lru_cache(maxsize=REMEMBERED)(self._answered)
        english = self._recognisers.get(ENGLISH)
        self._words = english.words if english else NameWords(settings.common)

    def _find(self, text: str) -> tuple[Hit, ...]:
        """Find personal data that has a shape, by our patterns and the user's recognisers."""
        found = find(text, self._settings.languages, self._settings.demanded)
        if self._custom is not None and text.strip():
            found = resolve([*found, *self._custom.find(text)])
        return tuple(self._allowed(text, found))

    def _answered(self, text: str, expected: frozenset[str], user: bool) -> tuple[Hit, ...]:
        """Find what the place of a text in its conversation shows to be personal data."""
        rule = self._settings.digits
        if rule is None:
            return ()
        hits = [Hit(*found) for found in identifiers(text, expected, rule)]
        hits += answers(text, expected, self._words, user=user)
        if user and "PERSON" in self._settings.names and ENGLISH in self._recognisers:
            hits += bare_name(text, self._words)
        elif "PERSON" not in self._settings.names:
            hits = [hit for hit in hits if hit.entity != "PERSON"]
        return tuple(self._allowed(text, hits))

    def _allowed(self, text: str, hits: Iterable[Hit]) -> list[Hit]:
        """Return the hits that are not on the allow-list."""
        allow = self._settings.allow
        return [h for h in hits if not allow or text[h.start : h.end].casefold() not in allow]

    def masking(self) -> Scrubber:
        """Return this scrubber with `[ENTITY]` in place of each surrogate.

        What is left can then be told from a surrogate that happens to have the same digit.
        """
        every = (*PATTERN_ENTITIES, *DEMANDED_ONLY, *NER_ENTITIES, *self.custom_entities)
        actions = dict.fromkeys(every, "mask") | dict.fromkeys(self._refused, "reject_row")
        other = copy(self)
        other._settings = replace(self._settings, actions=actions)
        other._masked = frozenset(every) - self._refused
        return other

    def scrub(
        self, keys: Sequence[str], batch: Sequence[Sequence[Message]], workers: int = 1
    ) -> list[Scrubbed]:
        """Scrub rows.

        Args:
            keys: a key of each row, which decides its surrogates.
            batch: turns of each row.
            workers: number of processes; the result does not depend on it.
        """
        shared = self._settings.shared or shared_parts(batch)
        return list(self._each(zip(keys, batch, strict=True), shared, workers))

    def each(self, rows: Iterable[_Keyed], workers: int = 1) -> Iterator[Scrubbed]:
        """Yield the rows of a dataset scrubbed, while others are still read.

        Args:
            rows: key and turns of each row.
            workers: number of processes; the result does not depend on it.
        """
        return self._each(rows, self._settings.shared or Shared(), workers)

    def _each(self, rows: Iterable[_Keyed], shared: Shared, workers: int) -> Iterator[Scrubbed]:
        given, kept = tee(rows)

        def here() -> _Work:
            return partial(self.scrub_chunk, shared)

        make: Callable[[], _Work] = (
            here if workers == 1 else partial(_chunk_scrubber, self._settings, shared)
        )
        chunks = iter(lambda: list(islice(given, CHUNK)), [])
        outcomes = chain.from_iterable(map_chunks(make, chunks, workers))
        for (scrubbed, foreign), (_, messages) in zip(outcomes, kept, strict=True):
            result = scrubbed or Scrubbed(list(messages))
            result.foreign = foreign
            yield result

    def scrub_chunk(self, shared: Shared, chunk: _Chunk) -> list[_Outcome]:
        """Scrub some of a dataset's rows.

        Returns:
            For each row its scrubbed form, None if nothing was found in it, and its undeclared
            language, if any.
        """
        batch = [messages for _, messages in chunk]
        pieces = [segments(messages, self._settings.label_field) for messages in batch]
        named = self._names(batch, pieces, shared)
        known = self._known(shared)
        outcomes: list[_Outcome] = []
        for (key, messages), own in zip(chunk, pieces, strict=True):
            result = None
            expected = wanted(messages)
            said = self._said(messages, own, expected, shared)
            if (
                said
                or any(named.get(piece.text) or self.find(piece.text) for piece in own)
                or any(self.find(message["content"]) for message in messages)
            ):
                surrogates = Surrogates(key, self._settings.seed, known, self._masked)
                result = self._row(messages, own, named, said, surrogates)
            outcomes.append((result, self._foreign(messages, shared)))
        return outcomes

    def _said(
        self,
        messages: Sequence[Message],
        own: Sequence[Segment],
        expected: Sequence[frozenset[str]],
        shared: Shared,
    ) -> dict[str, tuple[Hit, ...]]:
        """Find what the places of a row's texts in its conversation show, by text."""
        said: dict[str, tuple[Hit, ...]] = {}
        for piece in own:
            role = messages[piece.turn]["role"]
            if role == "system" or piece.text != messages[piece.turn]["content"]:
                continue
            start, end = shared.affixes.cut(piece.text) if role == "user" else (0, len(piece.text))
            hits = self._answers(piece.text[start:end], expected[piece.turn], role == "user")
            if hits:
                moved = tuple(Hit(h.start + start, h.end + start, h.entity) for h in hits)
                said[piece.text] = (*said.get(piece.text, ()), *moved)
        return said

    def _foreign(self, messages: Sequence[Message], shared: Shared) -> str | None:
        """Return the undeclared language of a row's own turns, without the shared parts."""
        said = [
            shared.affixes.own(m["content"]) if m["role"] == "user" else m["content"]
            for m in messages
            if m["role"] != "system"
        ]
        return foreign_language("\n".join(said), self._settings.languages)

    def _names(
        self,
        batch: Sequence[Sequence[Message]],
        pieces: Sequence[Sequence[Segment]],
        shared: Shared,
    ) -> Mapping[str, list[Hit]]:
        """Find the names in each distinct text, outside the parts that rows share."""
        if not self._recognisers:
            return {}
        cuts: dict[str, tuple[int, int]] = {}
        for messages, own in zip(batch, pieces, strict=True):
            for piece in own:
                if piece.text in shared.systems or piece.text in cuts:
                    continue
                user = messages[piece.turn]["role"] == "user"
                cuts[piece.text] = shared.affixes.cut(piece.text) if user else (0, len(piece.text))
        texts: dict[str, list[str]] = {language: [] for language in self._recognisers}
        for text in cuts:
            texts[likeliest(text, list(texts))].append(text)
        named: dict[str, list[Hit]] = {}
        for language, some in texts.items():
            parts = [text[slice(*cuts[text])] for text in some]
            for text, hits in zip(some, self._recognisers[language].find(parts), strict=True):
                start = cuts[text][0]
                named[text] = self._allowed(
                    text, [Hit(h.start + start, h.end + start, h.entity) for h in hits]
                )
        return named

    def _known(self, shared: Shared) -> dict[tuple[str, str], str]:
        """Return the surrogates of the values in shared texts: the same in every row."""
        surrogates = Surrogates("shared", self._settings.seed, masked=self._masked)
        for text in sorted({*shared.systems, shared.affixes.prefix, shared.affixes.suffix}):
            for hit in self.find(text):
                surrogates.of(hit.entity, text[hit.start : hit.end])
        return surrogates.given

    def _mentions(
        self,
        own: Sequence[Segment],
        named: Mapping[str, Sequence[Hit]],
        said: Mapping[str, Sequence[Hit]],
    ) -> Callable[[str], list[Hit]]:
        """Return a finder of the values of a row wherever else they are said in it."""
        values: dict[tuple[str, str], None] = {}
        for piece in own:
            text = piece.text
            for hit in resolve([*self.find(text), *said.get(text, ()), *named.get(text, ())]):
                values[hit.entity, text[hit.start : hit.end]] = None
        again = repeated_values(values, self._words.is_name_part)
        pins = frozenset(
            len(value) for entity, value in values if entity == "PASSWORD" and value.isdigit()
        )
        if not pins or self._settings.digits is None:
            return again
        return lambda text: [*again(text), *(Hit(*found) for found in alike(text, pins))]

    def _row(
        self,
        messages: Sequence[Message],
        own: Sequence[Segment],
        named: Mapping[str, list[Hit]],
        said: Mapping[str, Sequence[Hit]],
        surrogates: Surrogates,
    ) -> Scrubbed:
        """Scrub a row until no pattern hits anything but surrogates, in at most three passes."""
        result = Scrubbed(list(messages))
        mentions = self._mentions(own, named, said)

        def change(text: str) -> str:
            hits = [*said.get(text, ()), *named.get(text, ())]
            hits = [*self.find(text), *hits, *mentions(text)]
            people = (hit.end for hit in hits if hit.entity == "PERSON")
            hits += [Hit(*span, "BIRTH_DATE") for span in births_after(text, people)]
            taken = places(text, replaced)
            parts, at = [], 0
            for hit in self._allowed(text, resolve(hits)):
                if overlaps(hit, taken):
                    continue
                value = text[hit.start : hit.end]
                parts += [text[at : hit.start], surrogates.of(hit.entity, value)]
                at = hit.end
                result.hits[hit.entity] += 1
            return "".join([*parts, text[at:]])

        # In the first pass what looks like a surrogate is a value of the row.
        replaced: dict[str, str] = {}
        for _ in range(MAX_PASSES):
            result.messages = [
                map_turn(m, change, self._settings.label_field) for m in result.messages
            ]
            result.residual = residual_hits(result.messages, surrogates.values, finder=self.find)
            if not result.residual:
                break
            replaced = surrogates.values
        result.surrogates = tuple(
            StandIn(turn, start, end, entity)
            for turn, message in enumerate(result.messages)
            for start, end, entity in places(message["content"], surrogates.values)
        )
        result.refused = tuple(sorted(self._refused & result.hits.keys()))
        return result


def _chunk_scrubber(settings: Settings, shared: Shared) -> _Work:
    """Make the function that scrubs chunks in a worker."""
    return partial(Scrubber(settings).scrub_chunk, shared)


def _recognisers(settings: Settings) -> dict[str, Recogniser]:
    """Make the recogniser of names of each language.

    A model serves its own language, one that an address names serves all; cues are English, so
    English has a recogniser in any case.
    """
    if not settings.names:
        return {}
    served = [code for code in settings.languages if code in settings.models or code == ENGLISH]
    shared = _entity_model(settings)
    return {
        language: Recogniser(
            settings.models.get(language) if served and shared is None else None,
            settings.names,
            tuple(settings.allow),
            settings.common,
            english=language == ENGLISH,
            shared=shared,
        )
        for language in served or [ENGLISH]
    }


def _entity_model(settings: Settings) -> EntityModel | None:
    """Load the model that an address names, None where spaCy finds the names."""
    if settings.name_model is None:
        return None
    wanted = {*settings.profiled, *settings.names} - ({*NER_ENTITIES} - {*settings.names})
    return load_entity_model(Path(settings.name_model), wanted, settings.name_labels)


def shape_finder(config: DataConfig) -> Find:
    """Return a finder of personal data with a shape, names left out, as configured."""
    return Scrubber(replace(settings_of(config), names=(), digits=None)).find


def make_scrubber(
    config: DataConfig, texts: Sequence[str], shared: Shared | None = None
) -> Scrubber:
    """Make the scrubber that a configuration asks for.

    Args:
        config: profiles, languages, actions, allow-list and recognisers.
        texts: texts of the dataset, to know ordinary words from names.
        shared: parts that its rows share; None if each batch shows its own.

    Raises:
        UserError: if a model or recogniser can't be loaded, or an action names an unknown entity.
    """
    settings = settings_of(config)
    if config.name_model is not None and settings.names:
        # Fetched here, so that workers find it.
        directory, _ = fetch_entity_model(config.name_model)
        settings = replace(settings, name_model=str(directory))
    common = common_words(texts) if settings.names else frozenset()
    digits = settings.digits and replace(settings.digits, frequent=frequent_numbers(texts))
    return Scrubber(replace(settings, common=common, digits=digits, shared=shared))
