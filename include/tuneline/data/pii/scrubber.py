"""The scrubber: replaces personal data in the turns of rows, batch by batch.

Inside a row the same value gets the same stand-in in every turn. A JSON answer stays valid JSON:
its strings are scrubbed one by one, its label is left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.boilerplate import Affixes, common_affixes
from tuneline.data.pii.entities import NER_ENTITIES, Recogniser, common_words
from tuneline.data.pii.languages import ENGLISH, foreign_language, likeliest
from tuneline.data.pii.patterns import PATTERN_ENTITIES, Hit, find, resolve
from tuneline.data.pii.presidio import CustomRecognisers
from tuneline.data.pii.profiles import demanded_only, recognised
from tuneline.data.pii.safe_harbor import DEMANDED_ONLY
from tuneline.data.pii.surrogates import StandIns
from tuneline.data.pii.turns import Segment, map_turn, segments
from tuneline.data.pii.workers import map_chunks
from tuneline.data.tables.rows import Message, StandIn
from tuneline.errors import UserError

SEED = 7
# A system prompt that stands in so many rows belongs to the dataset, not to a person.
SHARED_ROWS = 20
MAX_PASSES = 3
# Rows that a worker gets at once; always the same, since a model's batches must not depend on
# the number of workers.
CHUNK = 512
# Texts repeat in chat data; so many are remembered.
REMEMBERED = 10_000

Find = Callable[[str], Sequence[Hit]]


@dataclass
class Scrubbed:
    """A scrubbed row.

    Attributes:
        messages: its turns.
        stand_ins: where they are.
        hits: what was found, by entity.
        residual: pattern hits that are left.
        refused: entities for which the row is to be rejected.
        foreign: the undeclared language or script that it is in.
    """

    messages: list[Message]
    stand_ins: tuple[StandIn, ...] = ()
    hits: Counter[str] = field(default_factory=Counter)
    residual: int = 0
    refused: tuple[str, ...] = ()
    foreign: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a scrubber needs to know; a worker makes its own from it.

    Attributes:
        names: which of `NER_ENTITIES` to find.
        demanded: which of `DEMANDED_ONLY` to find.
        models: spaCy package by language; without one only cues find names.
        languages: declared languages.
        recognizers: Presidio recognisers of the user's own.
        least_score: of their hits.
        common: words of the dataset that are no names.
        label_field: field of a JSON answer that is left alone.
        allow: texts that are never personal data, casefolded.
        actions: what happens to an entity's hits; they are replaced where nothing is said.
        seed: decides stand-ins.
    """

    names: tuple[str, ...] = ()
    demanded: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = (ENGLISH,)
    recognizers: tuple[str | Mapping[str, Any], ...] = ()
    least_score: float = 0.4
    common: frozenset[str] = frozenset()
    label_field: str | None = None
    allow: frozenset[str] = frozenset()
    actions: Mapping[str, str] = field(default_factory=dict)
    seed: int = SEED


@dataclass(frozen=True)
class _Dataset:
    """What is known of all rows: the parts that belong to none of them."""

    shared: frozenset[str]
    affixes: Affixes


_Chunk = tuple[Sequence[str], Sequence[Sequence[Message]]]
_Work = Callable[[_Chunk], "list[Scrubbed | str | None]"]


class Scrubber:
    """Scrubs batches of rows.

    Args:
        settings: what to look for and what to do about it.

    Raises:
        UserError: a model or recogniser can't be loaded, or an action is for an unknown entity.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._custom = None
        if settings.recognizers:
            self._custom = CustomRecognisers(
                settings.recognizers, settings.languages, settings.least_score
            )
        self.custom_entities = self._custom.entities if self._custom else ()
        unknown = settings.actions.keys() - {
            *PATTERN_ENTITIES,
            *DEMANDED_ONLY,
            *NER_ENTITIES,
            *self.custom_entities,
        }
        if unknown:
            raise UserError(
                f"data.pii_actions: no entity is called {', '.join(sorted(unknown))}; there are "
                + ", ".join(
                    (*PATTERN_ENTITIES, *DEMANDED_ONLY, *NER_ENTITIES, *self.custom_entities)
                )
            )
        self._masked = frozenset(e for e, action in settings.actions.items() if action == "mask")
        self._refused = frozenset(
            e for e, action in settings.actions.items() if action == "reject_row"
        )
        self._recognisers = _recognisers(settings)
        self.find = lru_cache(maxsize=REMEMBERED)(self._find)

    def _find(self, text: str) -> tuple[Hit, ...]:
        """Personal data with a shape, by our patterns and the user's recognisers."""
        found = find(text, self._settings.languages, self._settings.demanded)
        if self._custom is not None and text.strip():
            found = resolve([*found, *self._custom.find(text)])
        allow = self._settings.allow
        return tuple(h for h in found if not allow or text[h.start : h.end].casefold() not in allow)

    def scrub(
        self, keys: Sequence[str], batch: Sequence[Sequence[Message]], workers: int = 1
    ) -> list[Scrubbed]:
        """Scrub rows.

        Args:
            keys: what belongs to each row alone; it decides its stand-ins.
            batch: turns of each row.
            workers: number of processes; the result does not depend on it.
        """
        users = [m["content"] for messages in batch for m in messages if m["role"] == "user"]
        dataset = _Dataset(_shared_systems(batch), common_affixes(users))
        chunks: list[_Chunk] = [
            (keys[start : start + CHUNK], batch[start : start + CHUNK])
            for start in range(0, len(batch), CHUNK)
        ]
        make: Callable[[], _Work] = partial(_chunk_scrubber, self._settings, dataset)
        if workers == 1:
            make = partial(partial, self.scrub_chunk, dataset)
        results: list[Scrubbed] = []
        for (_, messages), found in zip(chunks, map_chunks(make, chunks, workers), strict=True):
            results += [
                Scrubbed(list(own), foreign=scrubbed)
                if scrubbed is None or isinstance(scrubbed, str)
                else scrubbed
                for own, scrubbed in zip(messages, found, strict=True)
            ]
        return results

    def scrub_chunk(self, dataset: _Dataset, chunk: _Chunk) -> list[Scrubbed | str | None]:
        """Scrub some of a dataset's rows.

        Returns:
            For each row what became of it; where it stays as it is, only the undeclared language
            that it is in, or None.
        """
        keys, batch = chunk
        pieces = [segments(messages, self._settings.label_field) for messages in batch]
        named = self._names(batch, pieces, dataset)
        known = self._known(dataset)
        results: list[Scrubbed | str | None] = []
        for key, messages, own in zip(keys, batch, pieces, strict=True):
            foreign = self._foreign(messages, dataset)
            clean = not (
                any(named.get(piece.text) or self.find(piece.text) for piece in own)
                or any(self.find(message["content"]) for message in messages)
            )
            if clean:
                results.append(foreign)
                continue
            stand_ins = StandIns(key, self._settings.seed, known, self._masked)
            result = self._row(messages, own, named, stand_ins)
            result.foreign = foreign
            results.append(result)
        return results

    def _foreign(self, messages: Sequence[Message], dataset: _Dataset) -> str | None:
        """The undeclared language of what is said in a row, its shared parts left out."""
        said = [
            dataset.affixes.own(m["content"]) if m["role"] == "user" else m["content"]
            for m in messages
            if m["role"] != "system"
        ]
        return foreign_language("\n".join(said), self._settings.languages)

    def _names(
        self,
        batch: Sequence[Sequence[Message]],
        pieces: Sequence[Sequence[Segment]],
        dataset: _Dataset,
    ) -> Mapping[str, list[Hit]]:
        """Names in each different text, without the parts that belong to the dataset."""
        if not self._recognisers:
            return {}
        cuts: dict[str, tuple[int, int]] = {}
        for messages, own in zip(batch, pieces, strict=True):
            for piece in own:
                if piece.text in dataset.shared or piece.text in cuts:
                    continue
                user = messages[piece.turn]["role"] == "user"
                cuts[piece.text] = dataset.affixes.cut(piece.text) if user else (0, len(piece.text))
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

    def _known(self, dataset: _Dataset) -> dict[tuple[str, str], str]:
        """Stand-ins of what shared texts hold: the same in every row."""
        stand_ins = StandIns("shared", self._settings.seed, masked=self._masked)
        for text in sorted({*dataset.shared, dataset.affixes.prefix, dataset.affixes.suffix}):
            for hit in self.find(text):
                stand_ins.of(hit.entity, text[hit.start : hit.end])
        return stand_ins.given

    def _allowed(self, text: str, hits: Iterable[Hit]) -> list[Hit]:
        allow = self._settings.allow
        return [h for h in hits if text[h.start : h.end].casefold() not in allow]

    def _row(
        self,
        messages: Sequence[Message],
        own: Sequence[Segment],
        named: Mapping[str, list[Hit]],
        stand_ins: StandIns,
    ) -> Scrubbed:
        result = Scrubbed(list(messages))
        people = {
            piece.text[hit.start : hit.end]
            for piece in own
            for hit in named.get(piece.text, ())
            if hit.entity == "PERSON"
        }
        again = _mention_pattern(people)

        def change(text: str) -> str:
            hits = [*self.find(text), *named.get(text, ())]
            if again is not None:
                hits += [Hit(m.start(), m.end(), "PERSON") for m in again.finditer(text)]
            taken = _places(text, stand_ins.values)
            parts, at = [], 0
            for hit in self._allowed(text, resolve(hits)):
                if any(hit.start < end and start < hit.end for start, end, _ in taken):
                    continue
                parts += [text[at : hit.start], stand_ins.of(hit.entity, text[hit.start : hit.end])]
                at = hit.end
                result.hits[hit.entity] += 1
            return "".join([*parts, text[at:]])

        label_field = self._settings.label_field
        for _ in range(MAX_PASSES):
            result.messages = [map_turn(m, change, label_field) for m in result.messages]
            result.residual = residual_hits(result.messages, stand_ins.values, finder=self.find)
            if not result.residual:
                break
        result.stand_ins = tuple(
            StandIn(turn, start, end, entity)
            for turn, message in enumerate(result.messages)
            for start, end, entity in _places(message["content"], stand_ins.values)
        )
        result.refused = tuple(sorted(self._refused & result.hits.keys()))
        return result


def _chunk_scrubber(settings: Settings, dataset: _Dataset) -> _Work:
    return partial(Scrubber(settings).scrub_chunk, dataset)


def _recognisers(settings: Settings) -> dict[str, Recogniser]:
    """The finder of names of each language; cues are English, a model takes its own language."""
    if not settings.names:
        return {}
    return {
        language: Recogniser(
            settings.models.get(language),
            settings.names,
            tuple(settings.allow),
            settings.common,
            english=language == ENGLISH,
        )
        for language in settings.languages
        if language in settings.models or language == ENGLISH
    } or {ENGLISH: Recogniser(None, settings.names, tuple(settings.allow), settings.common)}


def residual_hits(
    messages: Sequence[Message],
    stand_ins: Iterable[str],
    finder: Find = find,
) -> int:
    """Pattern hits in a row's turns that are no stand-ins."""
    count = 0
    values = dict.fromkeys(stand_ins, "")
    for message in messages:
        text = message["content"]
        hits = finder(text)
        if not hits:
            continue
        places = _places(text, values)
        for hit in hits:
            covered = any(hit.start < end and start < hit.end for start, end, _ in places)
            count += not covered
    return count


def _places(text: str, values: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Where values stand in a text as whole words, the longest value first; no overlaps."""
    if not values:
        return []
    ordered = sorted(values, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)")
    return [(m.start(), m.end(), values[m[0]]) for m in pattern.finditer(text)]


def _mention_pattern(people: set[str]) -> re.Pattern[str] | None:
    """Finds further mentions of people: the whole name in any case, a part of it as written."""
    if not people:
        return None
    whole = [rf"(?i:{re.escape(name)})" for name in sorted(people, key=len, reverse=True)]
    parts = sorted(
        {part for name in people for part in name.split() if len(part) > 2 and part[0].isupper()},
        key=lambda part: (-len(part), part),
    )
    return re.compile(r"(?<!\w)(?:" + "|".join([*whole, *map(re.escape, parts)]) + r")(?!\w)")


def _shared_systems(batch: Sequence[Sequence[Message]]) -> frozenset[str]:
    counts = Counter(m["content"] for row in batch for m in row if m["role"] == "system")
    return frozenset(text for text, count in counts.items() if count >= SHARED_ROWS)


def shape_finder(config: DataConfig) -> Find:
    """Finds what has a shape as `make_scrubber` does, without names."""
    return Scrubber(replace(_settings(config), names=())).find


def make_scrubber(config: DataConfig, texts: Iterable[str]) -> Scrubber:
    """The scrubber that a configuration asks for.

    Args:
        config: profiles, languages, actions, allow-list and recognisers.
        texts: texts of the dataset, which tell ordinary words from names.

    Raises:
        UserError: a model or recogniser can't be loaded, or an action is for an unknown entity.
    """
    settings = _settings(config)
    common = common_words(texts) if settings.names else frozenset()
    return Scrubber(replace(settings, common=common))


def _settings(config: DataConfig) -> Settings:
    return Settings(
        names=recognised(config.pii_profile),
        demanded=demanded_only(config.pii_profile),
        models=config.spacy_models if config.pii_ner else {},
        languages=tuple(config.languages),
        recognizers=tuple(config.pii_recognizers),
        least_score=config.pii_recognizer_score,
        label_field=config.label_field,
        allow=frozenset(text.casefold() for text in config.pii_allow),
        actions=config.pii_actions,
    )
