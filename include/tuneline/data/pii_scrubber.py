"""The scrubber: replaces personal data in the turns of rows, batch by batch.

Inside a row the same value gets the same stand-in in every turn. A JSON answer stays valid JSON:
its strings are scrubbed one by one, its label is left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.answers import answer_object, dump_like
from tuneline.data.boilerplate import Affixes, common_affixes
from tuneline.data.pii_entities import Recogniser, common_words
from tuneline.data.pii_patterns import Hit, find, resolve
from tuneline.data.pii_profiles import recognised
from tuneline.data.pii_surrogates import StandIns
from tuneline.data.tables import Message, StandIn

SEED = 7
# A system prompt that stands in so many rows belongs to the dataset, not to a person.
SHARED_ROWS = 20
MAX_PASSES = 3
# A number in a JSON answer with fewer digits identifies nobody.
MIN_NUMBER_DIGITS = 9


@dataclass
class Scrubbed:
    """A scrubbed row: its turns, stand-ins, hits by entity, and pattern hits that are left."""

    messages: list[Message]
    stand_ins: tuple[StandIn, ...] = ()
    hits: Counter[str] = field(default_factory=Counter)
    residual: int = 0


@dataclass(frozen=True)
class _Segment:
    """A piece of running text in a row: a whole turn or a value of a JSON answer."""

    turn: int
    text: str


def segments(messages: Sequence[Message], label_field: str | None) -> list[_Segment]:
    """The running texts of a row, in the order in which `_rebuild` visits them."""
    found: list[_Segment] = []
    for turn, message in enumerate(messages):

        def note(text: str, turn: int = turn) -> str:
            found.append(_Segment(turn, text))
            return text

        _map_turn(message, note, label_field)
    return found


def _map_turn(message: Message, change: Callable[[str], str], label_field: str | None) -> Message:
    """Apply a change to the running texts of a turn."""
    content = message["content"]
    value = answer_object(content) if message["role"] == "assistant" else None
    if value is None:
        return {"role": message["role"], "content": change(content)}
    changed = _map_json(value, change, label_field)
    if changed == value:
        return message
    return {"role": message["role"], "content": dump_like(changed, content)}


def _map_json(value: Any, change: Callable[[str], str], label_field: str | None) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key: entry if key == label_field else _map_json(entry, change, label_field)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_map_json(entry, change, label_field) for entry in value]
    if isinstance(value, int | float) and len(str(value)) >= MIN_NUMBER_DIGITS:
        changed = change(str(value))
        return value if changed == str(value) else changed
    return value


class Scrubber:
    """Scrubs batches of rows.

    Args:
        recogniser: finds names, None for patterns alone.
        label_field: field of a JSON answer that is left alone.
        allow: texts that are never personal data.
        seed: decides stand-ins.
    """

    def __init__(
        self,
        recogniser: Recogniser | None,
        *,
        label_field: str | None = None,
        allow: Iterable[str] = (),
        seed: int = SEED,
    ) -> None:
        self._recogniser = recogniser
        self._label_field = label_field
        self._allow = frozenset(text.casefold() for text in allow)
        self._seed = seed

    def scrub(self, keys: Sequence[str], batch: Sequence[Sequence[Message]]) -> list[Scrubbed]:
        """Scrub rows.

        Args:
            keys: what belongs to each row alone; it decides its stand-ins.
            batch: turns of each row.
        """
        shared = _shared_systems(batch)
        affixes = common_affixes(
            [m["content"] for messages in batch for m in messages if m["role"] == "user"]
        )
        pieces = [segments(messages, self._label_field) for messages in batch]
        named = self._names(batch, pieces, shared, affixes)
        known = self._known(shared, affixes)
        results = []
        for key, messages, own in zip(keys, batch, pieces, strict=True):
            stand_ins = StandIns(key, self._seed, known)
            results.append(self._row(messages, own, named, stand_ins))
        return results

    def _names(
        self,
        batch: Sequence[Sequence[Message]],
        pieces: Sequence[Sequence[_Segment]],
        shared: frozenset[str],
        affixes: Affixes,
    ) -> Mapping[str, list[Hit]]:
        """Names in each different text, without the parts that belong to the dataset."""
        if self._recogniser is None:
            return {}
        cuts: dict[str, tuple[int, int]] = {}
        for messages, own in zip(batch, pieces, strict=True):
            for piece in own:
                if piece.text in shared or piece.text in cuts:
                    continue
                user = messages[piece.turn]["role"] == "user"
                cuts[piece.text] = affixes.cut(piece.text) if user else (0, len(piece.text))
        parts = [text[start:end] for text, (start, end) in cuts.items()]
        return {
            text: [Hit(h.start + start, h.end + start, h.entity) for h in hits]
            for (text, (start, _)), hits in zip(
                cuts.items(), self._recogniser.find(parts), strict=True
            )
        }

    def _known(self, shared: frozenset[str], affixes: Affixes) -> dict[tuple[str, str], str]:
        """Stand-ins of what shared texts hold: the same in every row."""
        stand_ins = StandIns("shared", self._seed)
        for text in sorted({*shared, affixes.prefix, affixes.suffix}):
            for hit in self._allowed(text, find(text)):
                stand_ins.of(hit.entity, text[hit.start : hit.end])
        return stand_ins.given

    def _allowed(self, text: str, hits: Iterable[Hit]) -> list[Hit]:
        return [h for h in hits if text[h.start : h.end].casefold() not in self._allow]

    def _row(
        self,
        messages: Sequence[Message],
        own: Sequence[_Segment],
        named: Mapping[str, list[Hit]],
        stand_ins: StandIns,
    ) -> Scrubbed:
        result = Scrubbed(list(messages))
        people = {
            piece.text[hit.start : hit.end]
            for piece in own
            for hit in self._allowed(piece.text, named.get(piece.text, []))
            if hit.entity == "PERSON"
        }
        again = _mention_pattern(people)

        def change(text: str) -> str:
            hits = [*find(text), *named.get(text, [])]
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

        for _ in range(MAX_PASSES):
            result.messages = [_map_turn(m, change, self._label_field) for m in result.messages]
            result.residual = residual_hits(result.messages, stand_ins.values, self._allow)
            if not result.residual:
                break
        result.stand_ins = tuple(
            StandIn(turn, start, end, entity)
            for turn, message in enumerate(result.messages)
            for start, end, entity in _places(message["content"], stand_ins.values)
        )
        return result


def residual_hits(
    messages: Sequence[Message], stand_ins: Iterable[str], allow: frozenset[str] = frozenset()
) -> int:
    """Pattern hits in a row's turns that are neither stand-ins nor allowed."""
    count = 0
    values = dict.fromkeys(stand_ins, "")
    for message in messages:
        text = message["content"]
        hits = find(text)
        if not hits:
            continue
        places = _places(text, values)
        for hit in hits:
            covered = any(hit.start < end and start < hit.end for start, end, _ in places)
            count += not covered and text[hit.start : hit.end].casefold() not in allow
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


def make_scrubber(config: DataConfig, texts: Iterable[str]) -> Scrubber:
    """The scrubber that a configuration asks for.

    Args:
        config: profiles, allow-list and recogniser.
        texts: texts of the dataset, which tell ordinary words from names.
    """
    entities = recognised(config.pii_profile)
    recogniser = None
    if entities:
        model = config.spacy_model if config.pii_ner else None
        recogniser = Recogniser(model, entities, config.pii_allow, common_words(texts))
    return Scrubber(recogniser, label_field=config.label_field, allow=config.pii_allow)
