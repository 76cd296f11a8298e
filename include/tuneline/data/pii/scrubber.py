"""Replace the personal data in the turns of rows by surrogates, batch by batch.

Inside a row the same value gets the same surrogate in every turn. A JSON answer stays valid JSON:
its strings are scrubbed one by one, its label is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice, tee

from tuneline.config import DataConfig
from tuneline.data.pii.births import births_after
from tuneline.data.pii.cases import common_words
from tuneline.data.pii.digit_rule import frequent_numbers
from tuneline.data.pii.entities import NER_ENTITIES
from tuneline.data.pii.hits import PATTERN_ENTITIES, Hit, resolve
from tuneline.data.pii.languages import ENGLISH, foreign_language, likeliest
from tuneline.data.pii.listening import REMEMBERED, Listener
from tuneline.data.pii.mentions import mentions_of
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.neighbours import names_beside
from tuneline.data.pii.ner.fetched import fetch_entity_model
from tuneline.data.pii.parts import LONGEST, in_parts
from tuneline.data.pii.patterns import find
from tuneline.data.pii.presidio import CustomRecognisers
from tuneline.data.pii.recognisers import recognisers_of
from tuneline.data.pii.residuals import Find, overlaps, places, residual_hits
from tuneline.data.pii.safe_harbor import DEMANDED_ONLY
from tuneline.data.pii.settings import Settings, settings_of
from tuneline.data.pii.shared_parts import Shared, shared_parts
from tuneline.data.pii.surrogates import Surrogates
from tuneline.data.pii.turns import Segment, map_turn, own_part, segments
from tuneline.data.tables.rows import Message, StandIn
from tuneline.errors import UserError
from tuneline.machine.workers import map_chunks

MAX_PASSES = 3
# Rows that a worker gets at once. The number is fixed: the batches of a model must not depend on
# the number of workers.
CHUNK = 512


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


_Keyed = tuple[str | None, Sequence[Message]]
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
        self._recognisers = recognisers_of(settings)
        models = (recogniser.ignored_labels for recogniser in self._recognisers.values())
        self.ignored_labels = next(models, ())
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._find)
        english = self._recognisers.get(ENGLISH)
        self._words = english.words if english else NameWords(settings.common)
        self._listener = Listener(settings, self._words, self._allowed)

    def find(self, text: str) -> tuple[Hit, ...]:
        """Find personal data that has a shape, by our patterns and the user's recognisers."""
        # Chats repeat short texts; many long ones would fill the memory.
        return self._remembered(text) if len(text) <= LONGEST else self._find(text)

    def _find(self, text: str) -> tuple[Hit, ...]:
        found = find(text, self._settings.languages, self._settings.demanded)
        if self._custom is not None and text.strip():
            found = resolve(text, [*found, *self._custom.find(text)])
        return tuple(self._allowed(text, found))

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
            rows: key and turns of each row; without a key its turns are one.
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
            said = self._listener.said(messages, own, shared, self.find)
            if (
                said
                or any(named.get(piece.text) or self.find(piece.text) for piece in own)
                or any(self.find(message["content"]) for message in messages)
            ):
                own_key = _key_of(messages) if key is None else key
                surrogates = Surrogates(own_key, self._settings.seed, known, self._masked)
                result = self._row(messages, own, named, said, surrogates)
            outcomes.append((result, self._foreign(messages, shared)))
        return outcomes

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
        for messages, texts_of_row in zip(batch, pieces, strict=True):
            for piece in texts_of_row:
                message = messages[piece.turn]
                own = message["content"] not in shared.systems and len(piece.text) <= LONGEST
                if own and piece.text not in cuts:
                    cuts[piece.text] = own_part(piece, message, shared.affixes)
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
        found = {
            text: [*self.find(text), *said.get(text, ()), *named.get(text, ())]
            for text in dict.fromkeys(piece.text for piece in own)
        }
        mentions = mentions_of(
            found, self._words.is_name_part, loosely=self._settings.digits is not None
        )

        def change(text: str) -> str:
            hits = [*said.get(text, ()), *named.get(text, ())]
            hits = [*self.find(text), *hits, *mentions(text)]
            chosen, given = resolve(text, hits), len(hits)
            if self._settings.names and self._settings.digits is not None:
                beside = names_beside(text, chosen, self._words)
                hits += [Hit(*span, "PERSON") for span in beside]
            people = (hit.end for hit in hits if hit.entity == "PERSON")
            hits += [Hit(*span, "BIRTH_DATE") for span in births_after(text, people)]
            if len(hits) > given:
                chosen = resolve(text, hits)
            taken = places(text, replaced)
            parts, at = [], 0
            for hit in self._allowed(text, chosen):
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
                map_turn(m, in_parts(change), self._settings.label_field) for m in result.messages
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


def _key_of(messages: Sequence[Message]) -> str:
    """Return the key of a row's surrogates.

    Equal conversations get equal surrogates and stay equal, whatever else their source lines hold;
    different ones get different surrogates, by which deduplication tells them apart.
    """
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _chunk_scrubber(settings: Settings, shared: Shared) -> _Work:
    """Make the function that scrubs chunks in a worker."""
    return partial(Scrubber(settings).scrub_chunk, shared)


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
