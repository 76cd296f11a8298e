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
from itertools import chain, islice, tee

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import ENTITIES, Hit, Settings, scrubbed_entities
from tuneline.data.pii.find.languages import foreign_language, likeliest
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared, map_turn, shared_parts, texts_of
from tuneline.data.pii.replace.residuals import (
    Find,
    Span,
    left_values,
    overlaps,
    places,
    residual_hits,
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
        self._detector = Detector(settings)
        self.custom_entities = self._detector.custom_entities
        self.ignored_labels = self._detector.ignored_labels
        known = (*ENTITIES, *self.custom_entities)
        if unknown := settings.actions.keys() - set(known):
            raise UserError(
                f"data.pii_actions: no entity is called {', '.join(sorted(unknown))}; there are "
                + ", ".join(known)
            )
        self._masked = settings.entities_with("mask")
        self._refused = settings.entities_with("reject_row")

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
        shared = self._settings.shared or shared_parts(batch)
        return list(self.each(zip(keys, batch, strict=True), workers, shared))

    def each(
        self, rows: Iterable[_Keyed], workers: int = 1, shared: Shared | None = None
    ) -> Iterator[Scrubbed]:
        """Yield the rows of a dataset scrubbed, while others are still read.

        Args:
            rows: key and turns of each row; without a key its turns are one.
            workers: number of processes; the result does not depend on it.
            shared: parts that the rows share, where the settings know none.
        """
        shared = self._settings.shared or shared or Shared()
        given, kept = tee(rows)
        make: Callable[[], _Work] = partial(_chunk_scrubber, self._settings, shared)
        if workers == 1:
            work = partial(self.scrub_chunk, shared)
            make = lambda: work  # noqa: E731 - the model is loaded already
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
        # What is remembered would depend on the chunks that this process has seen.
        self._detector.forget()
        batch = [messages for _, messages in chunk]
        known = self._known(shared)
        outcomes: list[_Outcome] = []
        for (key, messages), hits in zip(chunk, self._detector.rows(batch, shared), strict=True):
            said = _said(messages, shared)
            result = None
            # In a JSON answer the names of fields are looked at as well.
            if hits or any(self.find(message["content"]) for message in messages):
                surrogates = Surrogates(
                    _key_of(messages) if key is None else key,
                    self._settings.seed,
                    likeliest(said, list(self._settings.languages)),
                    known,
                    self._masked,
                )
                result = self._row(messages, hits, shared, surrogates)
            outcomes.append((result, foreign_language(said, self._settings.languages)))
        return outcomes

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
        hits: Mapping[str, Sequence[Hit]],
        shared: Shared,
        surrogates: Surrogates,
    ) -> Scrubbed:
        """Scrub a row until nothing is found but surrogates, in at most three passes."""
        result = Scrubbed(list(messages))
        replaced = {(h.entity, text[h.start : h.end]) for text, some in hits.items() for h in some}
        surrogates.avoid(replaced)

        def spans_of(text: str, *, first: bool, is_shared: bool) -> list[Span]:
            if first and not is_shared:
                return _spans(hits.get(text, ()))
            taken = places(text, surrogates.values)
            left = () if is_shared else left_values(text, replaced)
            found = sorted({*_spans(self.find(text)), *left})
            return [span for span in found if not overlaps(Hit(*span), taken)]

        def change(text: str, **which: bool) -> str:
            parts, at = [], 0
            for start, end, entity in spans_of(text, **which):
                if start >= at:
                    replaced.add((entity, text[start:end]))
                    parts += [text[at:start], surrogates.of(entity, text[start:end])]
                    at = end
                    result.hits[entity] += 1
            return "".join([*parts, text[at:]])

        for number in range(MAX_PASSES):
            result.messages = [
                map_turn(
                    message,
                    partial(change, first=not number, is_shared=_is_shared(own, shared)),
                    self._settings.label_field,
                )
                for own, message in zip(messages, result.messages, strict=True)
            ]
            result.residual = residual_hits(result.messages, surrogates.values, self.find)
            result.left = self._left(messages, result.messages, shared, replaced)
            if not result.residual and not result.left:
                break
        result.surrogates = tuple(
            StandIn(turn, start, end, entity)
            for turn, message in enumerate(result.messages)
            for start, end, entity in places(message["content"], surrogates.values)
        )
        result.refused = tuple(sorted(self._refused & result.hits.keys()))
        return result

    def _left(
        self,
        before: Sequence[Message],
        after: Sequence[Message],
        shared: Shared,
        replaced: Iterable[tuple[str, str]],
    ) -> int:
        """Count the places where values stand still, outside of labels and of shared texts."""
        own = [m for old, m in zip(before, after, strict=True) if not _is_shared(old, shared)]
        texts = texts_of(own, self._settings.label_field)
        return sum(len(left_values(piece.text, replaced)) for piece in texts)


def _spans(hits: Iterable[Hit]) -> list[Span]:
    return [(hit.start, hit.end, hit.entity) for hit in hits]


def _is_shared(message: Message, shared: Shared) -> bool:
    return message["role"] == "system" and message["content"] in shared.systems


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


def _chunk_scrubber(settings: Settings, shared: Shared) -> _Work:
    """Make the function that scrubs chunks in a worker."""
    return partial(Scrubber(settings).scrub_chunk, shared)


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
    """Make the scrubber that a configuration asks for.

    Args:
        config: profiles, languages, actions, allow-list and recognisers.
        shared: parts that its rows share; None if each batch shows its own.

    Raises:
        UserError: if a model or recogniser can't be loaded, or an action names an unknown entity.
    """
    return Scrubber(replace(settings_of(config), shared=shared))
