"""Replace the personal data in conversations: in rows by surrogates, in logs by placeholders.

Inside a row the same value gets the same surrogate in every turn; labels are left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.config import DataConfig
from tuneline.config.data import AUTO, RAMPART
from tuneline.data.conversations.answers import map_texts
from tuneline.data.conversations.languages import foreign_language, likeliest
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import (
    ENTITIES,
    MEASURED,
    Hit,
    Settings,
    resolve,
    scrubbed_entities,
)
from tuneline.data.pii.find.models import model_directories
from tuneline.data.pii.find.texts import Shared, escapes, said, shared_parts, texts_of
from tuneline.data.pii.replace.surrogates import Surrogates
from tuneline.data.pii.replace.torn import torn_copies
from tuneline.data.tables.rows import Message, StandIn
from tuneline.errors import UserError
from tuneline.machine.workers import HERE, Engine, as_batch, rows_in

if TYPE_CHECKING:
    import pyarrow as pa

# What a value begins with: a whole word or a sign, which is not in a word.
_BEGIN = re.compile(r"(?<!\w)(?:\w+|[^\w\s])")
_IN_WORD = re.compile(r"\w")
# What stands before the first word of a sentence, and what follows a price, share or decimal.
_BEFORE_FIRST = re.compile(r"(?:^|[.!?:\n])[ \t\"'“‘(*-]*\Z")
_AFTER_AMOUNT = re.compile(r"[.,]\d| ?[%€£$]")
_NAMES = ("PERSON", "STREET_ADDRESS", "LOCATION")
Find = Callable[[str], Sequence[Hit]]


def residual_hits(messages: Sequence[Message], surrogates: Iterable[str], finder: Find) -> int:
    """Count the hits in a row's turns that are not surrogates."""
    values, texts = set(surrogates), [message["content"] for message in messages]
    return sum(len(other_hits(text, finder(text), values)) for text in texts)


def other_hits(text: str, hits: Sequence[Hit], surrogates: Iterable[str]) -> list[Hit]:
    """Return the hits in a text that share no character with a surrogate."""
    taken = places(text, dict.fromkeys(surrogates, "")) if hits else []
    starts = [place.start for place in taken]
    before = [bisect_left(starts, hit.end) for hit in hits]
    return [
        hit
        for hit, at in zip(hits, before, strict=True)
        if not at or taken[at - 1].end <= hit.start
    ]


def places(text: str, values: Mapping[str, str]) -> list[Hit]:
    """Return where values (and their entities) stand: whole words, the longest first."""
    begun: defaultdict[str, set[int]] = defaultdict(set)
    for value in values:
        if begin := _BEGIN.match(value):
            begun[begin[0]].add(len(value))
    found: list[Hit] = []
    for begin in _BEGIN.finditer(text) if begun else ():
        start = begin.start()
        ends = (start + length for length in sorted(begun.get(begin[0], ()), reverse=True))
        fits = (end for end in ends if text[start:end] in values and not _IN_WORD.match(text, end))
        if (not found or found[-1].end <= start) and (end := next(fits, 0)):
            found.append(Hit(start, end, values[text[start:end]]))
    return found


def left_values(text: str, replaced: Iterable[tuple[str, str]]) -> list[Hit]:
    """Return what identifies somebody by values that were replaced elsewhere.

    It is a whole value of at least four digits, or of several words, in upper or lower case; a run
    of at least four digits of any value but a date, if it is no year or amount; and a capitalised
    word of a name, within a sentence: "Will you?" and "mark" are ordinary words, whoever is called
    so. `replaced` holds entity and value of each replaced value.
    """
    anywhere: dict[str, str] = {}
    names: dict[str, str] = {}
    for entity, value in replaced:
        words = re.findall(r"\w+", value)
        if sum(map(str.isdecimal, value)) > 3 or len(words) > 1:
            anywhere[value.strip().lower()] = entity
        runs = re.findall(r"\d{4,}", value) if entity not in ("DATE", "BIRTH_DATE") else ()
        anywhere.update((n, entity) for n in runs if not re.fullmatch(r"(?:19|20)\d\d", n))
        if entity in _NAMES and (entity == "PERSON" or len(words) == 1):
            names.update((w, entity) for w in words if len(w) > 2 and w.istitle())
    lowered = text.lower() if len(text.lower()) == len(text) else text
    found = [hit for hit in places(lowered, anywhere) if not _is_amount(text, hit)]
    found += [
        hit
        for hit in places(text, names)
        if not _BEFORE_FIRST.search(text[max(0, hit.start - 20) : hit.start])
    ]
    return resolve(found)


def _is_amount(text: str, hit: Hit) -> bool:
    before = text[max(0, hit.start - 2) : hit.start].rstrip()
    return text[hit.start : hit.end].isdecimal() and (
        before.endswith(("$", "€", "£")) or _AFTER_AMOUNT.match(text, hit.end) is not None
    )


# Rows that a worker gets at once; fixed, so that a result never depends on the number of workers.
CHUNK = 512


@dataclass
class Scrubbed:
    """A scrubbed row, with the number of its hits by entity."""

    messages: list[Message]
    surrogates: tuple[StandIn, ...] = ()
    hits: Counter[str] = field(default_factory=Counter)
    # Pattern hits that are left, and places where a replaced value, or a part of it, stands still.
    residual: int = 0
    left: int = 0
    # What an answer no longer shares with the turns before it.
    torn: int = 0
    # Entities for which the row is to be rejected.
    refused: tuple[str, ...] = ()
    # Undeclared language or script of the row.
    foreign: str | None = None


_Turns = Sequence[Message]
_Found = Mapping[str, Sequence[Hit]]
_Keyed = tuple[str | None, _Turns]


class Scrubber:
    """A scrubber of rows; UserError if a model can't be loaded, or an action is wrong."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._detector = Detector(settings)
        self.find = self._detector.shapes  # what has a form or a cue
        self.custom_entities = self._detector.custom_entities
        self.ignored_labels = self._detector.ignored_labels
        known = (*ENTITIES, *self.custom_entities)
        if unknown := settings.actions.keys() - set(known):
            names = ", ".join(sorted(unknown))
            raise UserError(
                f"data.pii_actions: no entity is called {names}; there are {', '.join(known)}"
            )

    def __reduce__(self) -> tuple[type[Scrubber], tuple[Settings]]:
        return Scrubber, (self._settings,)  # each process loads the model itself

    def scrub(
        self, keys: Sequence[str], batch: Sequence[_Turns], workers: int = 1
    ) -> list[Scrubbed]:
        """Scrub rows, each with a key, which decides its surrogates; see `each`."""
        return list(self.each(zip(keys, batch, strict=True), workers, shared_parts(batch)))

    def each(
        self,
        rows: Iterable[_Keyed],
        workers: int = 1,
        shared: Shared | None = None,
        engine: Engine = HERE,
    ) -> Iterator[Scrubbed]:
        """Return the rows of a dataset scrubbed, some while others are still read.

        Each has a key and turns; without a key its prompt is one. `shared` parts of the rows count
        where the settings know none. The result does not depend on the number of workers.
        """
        given = iter(rows)
        chunks = iter(lambda: list(islice(given, CHUNK)), [])
        shared = self._settings.shared or shared or Shared()
        make = partial(partial, self._kernel, shared)
        for batch in engine.map(make, map(as_batch, chunks), workers):
            yield from map(_scrubbed_of, rows_in(batch))

    def _kernel(self, shared: Shared, batch: pa.RecordBatch) -> pa.RecordBatch:
        return as_batch(map(vars, self._scrub_chunk(shared, list(rows_in(batch)))), asdict)

    def _scrub_chunk(self, shared: Shared, chunk: Sequence[_Keyed]) -> list[Scrubbed]:
        found = self._detector.rows([messages for _, messages in chunk], shared)
        masked = self._settings.entities_with("mask")
        make = partial(Surrogates, seed=self._settings.seed, masked=masked)
        # What is in shared texts is replaced alike in every row.
        known = make("shared")
        parts = sorted({*shared.systems, shared.affixes.prefix, shared.affixes.suffix})
        prompts = {text: self.find(text) for text in parts}
        for text, hits in prompts.items():
            replace_hits(text, hits, known.of, Counter())
        results: list[Scrubbed] = []
        for (key, messages), own in zip(chunk, found, strict=True):
            own_words = _said(messages, shared)
            result = Scrubbed(list(messages))
            # In a JSON answer the names of fields are looked at as well.
            if own or any(self.find(message["content"]) for message in messages):
                # Equal prompts stay equal, so that contradicting answers are still found.
                prompt = messages[:-1] or messages
                text = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
                surrogates = make(
                    digest if key is None else key,
                    language=likeliest(own_words, list(self._settings.languages)),
                    given=dict(known.given),
                )
                result = self._row(messages, {**own, **prompts}, shared, surrogates)
            result.foreign = foreign_language(own_words, self._settings.languages)
            results.append(result)
        return results

    def _row(
        self, messages: _Turns, hits: _Found, shared: Shared, surrogates: Surrogates
    ) -> Scrubbed:
        """Scrub a row, and count what is found again but surrogates, is left, or was torn."""
        label = self._settings.label_field
        replaced = {
            (hit.entity, said(piece.text, hit.start, hit.end)): None
            for piece in texts_of(messages, label)
            for hit in hits.get(piece.text, ())
        }
        surrogates.avoid(replaced)
        # The longest first, for a part follows the whole.
        for entity, value in sorted(replaced, key=lambda pair: -len(pair[1].split())):
            surrogates.of(entity, value)
        counts: Counter[str] = Counter()

        def change(text: str) -> str:
            return replace_hits(text, hits.get(text, ()), surrogates.of, counts)

        changed = [map_texts(message, change, label) for message in messages]
        result = Scrubbed(changed, hits=counts)
        result.residual = residual_hits(changed, surrogates.values, self.find)
        own = [
            m
            for m, old in zip(changed, messages, strict=True)
            if old["content"] not in shared.systems
        ]
        result.left = sum(len(left_values(text, replaced)) for _, text in texts_of(own, label))
        result.torn = torn_copies(messages, changed, label)
        result.surrogates = tuple(
            StandIn(turn, place.start, place.end, place.entity)
            for turn, message in enumerate(changed)
            for place in places(message["content"], surrogates.values)
        )
        refused = self._settings.entities_with("reject_row")
        result.refused = tuple(sorted(refused & result.hits.keys()))
        return result


def _scrubbed_of(found: dict[str, Any]) -> Scrubbed:
    spans = tuple(StandIn(**span) for span in found["surrogates"])
    given = {"surrogates": spans, "hits": Counter(found["hits"])}
    return Scrubbed(**{**found, **given, "refused": tuple(found["refused"])})


def _said(messages: _Turns, shared: Shared) -> str:
    """Return what a row says itself, without the parts that rows share."""
    return "\n".join(
        shared.affixes.own(m["content"]) if m["role"] == "user" else m["content"]
        for m in messages
        if m["role"] != "system"
    )


def replace_hits(
    text: str, hits: Iterable[Hit], make: Callable[[str, str], str], counts: Counter[str]
) -> str:
    """Replace hits by what `make` returns for their entity and value, and count them by entity."""
    parts, at = [], 0
    for hit in hits:
        made = make(hit.entity, said(text, hit.start, hit.end))
        parts += [
            text[at : hit.start],
            json.dumps(made, ensure_ascii=False)[1:-1] if escapes(text) else made,
        ]
        at = hit.end
        counts[hit.entity] += 1
    return "".join([*parts, text[at:]])


def placeholder(entity: str, _: str) -> str:
    """Return what a log has in place of a value."""
    return f"[{entity}]"


def settings_of(config: DataConfig, *, models: bool = True) -> Settings:
    """Return the settings of a configuration, with its models' files (UserError) or none."""
    return Settings(
        entities=scrubbed_entities(config.pii_profile),
        languages=tuple(config.languages),
        models=model_directories(config) if models else (),
        unspaced=not set(config.pii_models) <= {RAMPART},
        labels=config.pii_ner_labels,
        recognizers=tuple(config.pii_recognizers),
        least_score=config.pii_recognizer_score,
        # Before the class is found, or a JSON field of that name would stay as it is.
        label_field=None if config.label_field == AUTO else config.label_field,
        allow=frozenset(text.casefold() for text in config.pii_allow),
        actions=config.pii_actions,
    )


def shape_finder(config: DataConfig) -> Callable[[str], Sequence[Hit]]:
    """Return a finder of personal data with a form or a cue, as configured; no model is asked."""
    return Detector(settings_of(config, models=False)).shapes


def make_scrubber(config: DataConfig, shared: Shared | None = None) -> Scrubber:
    """Make a scrubber as configured; without `shared` parts each batch shows its own."""
    return Scrubber(replace(settings_of(config), shared=shared))


@dataclass(frozen=True)
class PlaceholderScrubber:
    """Scrubs logged conversations in the process that it is sent to; UserError for a language."""

    languages: tuple[str, ...]
    models: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.languages) - set(MEASURED):
            names, known = ", ".join(sorted(unknown)), ", ".join(MEASURED)
            raise UserError(f"personal data is not found in {names}, but in {known}")

    def __call__(self, batch: Sequence[_Turns]) -> list[tuple[list[Message], Counter[str]]]:
        """Return conversations with placeholders such as `[EMAIL_ADDRESS]`, and their number.

        An answer that is JSON stays JSON, unless personal data is in the name of a field.
        """
        # Many requests have the same long system prompt, which is read once.
        said = [[m for m in messages if m["role"] != "system"] for messages in batch]
        found = _detector(self).rows(said, Shared())
        return [self._row(*row) for row in zip(batch, found, strict=True)]

    def _row(self, messages: _Turns, own: _Found) -> tuple[list[Message], Counter[str]]:
        counts: Counter[str] = Counter()

        def change(found: _Found, text: str) -> str:
            return replace_hits(text, found.get(text, ()), placeholder, counts)

        turns: list[Message] = []
        for message in messages:
            is_system = message["role"] == "system"
            found = _in_system(self, message["content"]) if is_system else own
            turn = map_texts(message, partial(change, found), None)
            # Inside a JSON answer only values were visited.
            if (content := turn["content"]).lstrip().startswith("{"):
                shapes = {content: _detector(self).shapes(content)}
                turn = {"role": turn["role"], "content": change(shapes, content)}
            turns.append(turn)
        return turns, counts


def make_placeholder_scrubber(languages: Sequence[str], *, model: bool) -> PlaceholderScrubber:
    """Make a scrubber with the usual model, or patterns alone; UserError if it can't be had."""
    config = DataConfig(source="log", pii_ner=model)
    return PlaceholderScrubber(tuple(languages), model_directories(config))


@cache
def _detector(scrubber: PlaceholderScrubber) -> Detector:
    return Detector(Settings(languages=scrubber.languages, models=scrubber.models))


@lru_cache(maxsize=256)
def _in_system(scrubber: PlaceholderScrubber, text: str) -> _Found:
    return _detector(scrubber).rows([[{"role": "system", "content": text}]], Shared())[0]
