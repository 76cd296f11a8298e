"""Replace the personal data in the turns of rows by surrogates, batch by batch.

Inside a row the same value gets the same surrogate in every turn. A JSON answer stays valid JSON:
its strings are scrubbed one by one, its label is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, compress, islice, tee

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector, resolve
from tuneline.data.pii.find.entities import ENTITIES, Hit, Settings, scrubbed_entities
from tuneline.data.pii.find.languages import foreign_language, likeliest
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared, map_turn, shared_parts, texts_of
from tuneline.data.pii.replace.residuals import (
    Find,
    left_values,
    places,
    residual_hits,
    without_surrogates,
)
from tuneline.data.pii.replace.surrogates import Surrogates
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
        left: number of places where a replaced value, or what identifies it, stands still.
        refused: entities for which the row is to be rejected.
        foreign: undeclared language or script of the row.
    """

    messages: list[Message]
    surrogates: tuple[StandIn, ...] = ()
    hits: Counter[str] = field(default_factory=Counter)
    residual: int = 0
    left: int = 0
    refused: tuple[str, ...] = ()
    foreign: str | None = None


_Keyed = tuple[str | None, Sequence[Message]]


class Scrubber:
    """A scrubber of batches of rows.

    Args:
        settings: what to look for and what to do about it.

    Raises:
        UserError: if a model or recogniser can't be loaded, or an action names an unknown entity.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._detector = Detector(settings)
        self.custom_entities = self._detector.custom_entities
        self.ignored_labels = self._detector.ignored_labels
        known = (*ENTITIES, *self.custom_entities)
        if unknown := settings.actions.keys() - set(known):
            raise UserError(
                f"data.pii_actions: no entity is called {', '.join(sorted(unknown))}; there are "
                + ", ".join(known)
            )

    def __reduce__(self) -> tuple[type[Scrubber], tuple[Settings]]:
        return Scrubber, (self._settings,)  # each process loads the model itself

    def find(self, text: str) -> tuple[Hit, ...]:
        """Find personal data that has a form or a cue, by patterns and the user's recognisers."""
        return self._detector.shapes(text)

    def scrub(
        self, keys: Sequence[str], batch: Sequence[Sequence[Message]], workers: int = 1
    ) -> list[Scrubbed]:
        """Scrub rows.

        Args:
            keys: a key of each row, which decides its surrogates.
            batch: turns of each row.
            workers: number of processes; the result does not depend on it.
        """
        return list(self.each(zip(keys, batch, strict=True), workers, shared_parts(batch)))

    def each(
        self, rows: Iterable[_Keyed], workers: int = 1, shared: Shared | None = None
    ) -> Iterator[Scrubbed]:
        """Yield the rows of a dataset scrubbed, while others are still read.

        Args:
            rows: key and turns of each row; without a key its turns are one.
            workers: number of processes; the result does not depend on it.
            shared: parts that the rows share, where the settings know none.
        """
        given, kept = tee(rows)
        work = partial(self._scrub_chunk, self._settings.shared or shared or Shared())
        chunks = iter(lambda: list(islice(given, CHUNK)), [])
        results = chain.from_iterable(map_chunks(partial(partial, work), chunks, workers))
        for result, (_, messages) in zip(results, kept, strict=True):
            # The turns of clean rows stay here.
            yield result if result.hits else replace(result, messages=list(messages))

    def _scrub_chunk(self, shared: Shared, chunk: Sequence[_Keyed]) -> list[Scrubbed]:
        # What is remembered would depend on the chunks that this process has seen.
        self._detector.forget()
        found = self._detector.rows([messages for _, messages in chunk], shared)
        # What is in shared texts is replaced alike in every row.
        masked = self._settings.entities_with("mask")
        make = partial(Surrogates, seed=self._settings.seed, masked=masked)
        parts = {*shared.systems, shared.affixes.prefix, shared.affixes.suffix}
        prompts = {text: self.find(text) for text in sorted(parts)}
        known = make("shared")
        for text, hits in prompts.items():
            for hit in hits:
                known.of(hit.entity, text[hit.start : hit.end])
        results: list[Scrubbed] = []
        for (key, messages), own in zip(chunk, found, strict=True):
            said = _said(messages, shared)
            result = Scrubbed([])
            # In a JSON answer the names of fields are looked at as well.
            if own or any(self.find(message["content"]) for message in messages):
                language = likeliest(said, list(self._settings.languages))
                row_key = _key_of(messages) if key is None else key
                surrogates = make(row_key, language=language, known=known.given)
                said_to_all = {m["content"] for m in messages} & prompts.keys()
                hits = {**own, **{text: prompts[text] for text in said_to_all}}
                result = self._row(messages, hits, shared, surrogates)
            result.foreign = foreign_language(said, self._settings.languages)
            results.append(result)
        return results

    def _row(
        self,
        messages: Sequence[Message],
        hits: Mapping[str, Sequence[Hit]],
        shared: Shared,
        surrogates: Surrogates,
    ) -> Scrubbed:
        """Scrub a row until nothing is found but surrogates, in at most three passes."""
        label = self._settings.label_field
        result = Scrubbed(list(messages))
        is_own = [message["content"] not in shared.systems for message in messages]
        texts = {piece.text for piece in texts_of(messages, label)} & hits.keys()
        replaced = {(hit.entity, text[hit.start : hit.end]) for text in texts for hit in hits[text]}
        surrogates.avoid(replaced)

        def surrogate(entity: str, value: str) -> str:
            replaced.add((entity, value))
            return surrogates.of(entity, value)

        def change(text: str, *, first: bool, own: bool) -> str:
            found = hits.get(text, ())
            if not first:
                left = left_values(text, replaced) if own else ()
                found = resolve(
                    without_surrogates(text, [*self.find(text), *left], surrogates.values)
                )
            return replace_hits(text, found, surrogate, result.hits)

        for number in range(MAX_PASSES):
            result.messages = [
                map_turn(message, partial(change, first=not number, own=own), label)
                for own, message in zip(is_own, result.messages, strict=True)
            ]
            result.residual = residual_hits(result.messages, surrogates.values, self.find)
            pieces = texts_of([*compress(result.messages, is_own)], label)
            result.left = sum(len(left_values(piece.text, replaced)) for piece in pieces)
            if not result.residual and not result.left:
                break
        result.surrogates = tuple(
            StandIn(turn, place.start, place.end, place.entity)
            for turn, message in enumerate(result.messages)
            for place in places(message["content"], surrogates.values)
        )
        refused = self._settings.entities_with("reject_row")
        result.refused = tuple(sorted(refused & result.hits.keys()))
        return result


def replace_hits(
    text: str, hits: Iterable[Hit], make: Callable[[str, str], str], counts: Counter[str]
) -> str:
    """Return a text with something else for each hit, and count the hits by entity.

    Args:
        text: a text.
        hits: hits in it, in order without overlaps.
        make: maker of what takes the place of a value, from its entity and itself.
        counts: the counts, which grow.
    """
    parts, at = [], 0
    for hit in hits:
        parts += [text[at : hit.start], make(hit.entity, text[hit.start : hit.end])]
        at = hit.end
        counts[hit.entity] += 1
    return "".join([*parts, text[at:]])


def _said(messages: Sequence[Message], shared: Shared) -> str:
    """Return what a row says itself, without the parts that rows share."""
    return "\n".join(
        shared.affixes.own(m["content"]) if m["role"] == "user" else m["content"]
        for m in messages
        if m["role"] != "system"
    )


def _key_of(messages: Sequence[Message]) -> str:
    """Return the key of a row's surrogates.

    Equal conversations get equal surrogates and stay equal, whatever else their source lines hold;
    different ones get different surrogates, by which deduplication tells them apart.
    """
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def settings_of(config: DataConfig, *, models: bool = True) -> Settings:
    """Return the settings that a configuration asks for, with its model's files on this machine.

    Args:
        config: profiles, languages, models, actions, allow-list and recognisers.
        models: False for patterns alone.

    Raises:
        UserError: if a model can't be had.
    """
    return Settings(
        entities=scrubbed_entities(config.pii_profile),
        languages=tuple(config.languages),
        models=model_directories(config) if models else (),
        labels=config.pii_ner_labels,
        recognizers=tuple(config.pii_recognizers),
        least_score=config.pii_recognizer_score,
        label_field=config.label_field,
        allow=frozenset(text.casefold() for text in config.pii_allow),
        actions=config.pii_actions,
    )


def shape_finder(config: DataConfig) -> Find:
    """Return a finder of personal data with a form or a cue, as configured; no model is asked."""
    return Detector(settings_of(config, models=False)).shapes


def make_scrubber(config: DataConfig, shared: Shared | None = None) -> Scrubber:
    """Make the scrubber that a configuration asks for; its errors are those of `Scrubber`.

    Args:
        config: profiles, languages, actions, allow-list and recognisers.
        shared: parts that its rows share; None if each batch shows its own.
    """
    return Scrubber(replace(settings_of(config), shared=shared))
