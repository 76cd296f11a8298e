"""Personal data and secrets are found and replaced by stand-ins, and what leaks is measured.

Tier 1 (patterns and checksums) runs on every row, tier 2 (names) where a profile demands it.
Inside a row the same value gets the same stand-in in every turn; a JSON answer stays valid JSON.
A canary set of the project's own making goes through the same code in every run: the share of it
that comes out readable is the residual leak rate, and its limit decides.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.config import DataConfig
from tuneline.data.answers import answer_object, dump_like
from tuneline.data.boilerplate import Affixes, common_affixes
from tuneline.data.pii_canaries import Canary, leaks, make_canaries
from tuneline.data.pii_entities import NER_ENTITIES, Recogniser, common_words
from tuneline.data.pii_patterns import Hit, find, resolve
from tuneline.data.pii_profiles import (
    demanded,
    recognised,
    scrubbed_entities,
    uncovered_languages,
)
from tuneline.data.pii_surrogates import StandIns
from tuneline.data.tables import (
    AUDIT,
    REJECTED,
    ROWS,
    UNSCRUBBED,
    Message,
    Row,
    StandIn,
    rejects_of,
    rows_of,
    scrubbed,
    write_audit,
    write_rejects,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "pii_scrubbing"
CANARIES = "canaries.parquet"
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


def leaked_canaries(scrubber: Scrubber, canaries: Sequence[Canary]) -> list[bool]:
    """Send canaries through the scrubber; which of them can still be read."""
    results = scrubber.scrub(
        [f"canary-{number}" for number in range(len(canaries))],
        [[{"role": "user", "content": canary.text}] for canary in canaries],
    )
    return [
        leaks(canary, result.messages[0]["content"])
        for canary, result in zip(canaries, results, strict=True)
    ]


def run(ctx: StepContext) -> Evidence:
    """Scrub every row and measure what leaks."""
    config = ctx.config.data
    rows = rows_of(ctx, "schema_validation", UNSCRUBBED)
    scrubber = make_scrubber(config, (m["content"] for row in rows for m in row.messages))
    # Equal source lines get equal stand-ins, so that they stay equal.
    results = scrubber.scrub(
        [row.row_id.split("-", 1)[0] for row in rows], [row.messages for row in rows]
    )
    kept: list[Row] = []
    left: list[tuple[Row, str]] = []
    for row, result in zip(rows, results, strict=True):
        if result.residual:
            left.append((row, f"residual_pii: {result.residual} hits are left after scrubbing"))
        else:
            kept.append(scrubbed(row, result.messages, result.stand_ins))
    write_rows(ctx.out / ROWS, kept)
    rejects = list(rejects_of(left, ITEM, {row.row_id: row.raw for row in rows}))
    write_rejects(ctx.quarantine / Path(REJECTED).name, rejects)
    canaries = make_canaries(scrubbed_entities(config.pii_profile), SEED)
    leaked = leaked_canaries(scrubber, canaries)
    _write_audits(ctx.out, rows, results, canaries, leaked)
    return _conclude(ctx, rows, results, canaries, leaked)


def _write_audits(
    out: Path,
    rows: Sequence[Row],
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
) -> None:
    write_audit(
        out / AUDIT,
        {
            "row_id": [row.row_id for row in rows],
            "kept": [not result.residual for result in results],
            "reason": ["residual_pii" if result.residual else None for result in results],
            "hits": [result.hits.total() for result in results],
            "residual_hits": [result.residual for result in results],
        },
    )
    write_audit(
        out / CANARIES,
        {
            "entity": [canary.entity for canary in canaries],
            "form": [canary.form for canary in canaries],
            "leaked": [int(leak) for leak in leaked],
        },
    )


def leak_limit(entity: str, config: DataConfig) -> float:
    """The share of an entity's canaries that may leak."""
    return config.pii_max_leak_ner if entity in NER_ENTITIES else config.pii_max_leak


def _conclude(
    ctx: StepContext,
    rows: Sequence[Row],
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
) -> Evidence:
    config = ctx.config.data
    hits: Counter[str] = sum((result.hits for result in results), Counter())
    lost = [result for result in results if result.residual]
    kept = len(rows) - len(lost)
    uncovered = uncovered_languages(config.pii_languages)
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", kept, "rows", ">=", 1),
        measure("rows_lost", len(rows) - kept - len(lost), "rows", "==", 0),
        measure("rows_changed", sum(r.hits.total() > 0 for r in results), "rows"),
        measure("rows_rejected", len(lost), "rows"),
        *(measure(f"found_{entity}", hits[entity], "hits") for entity in sorted(hits)),
        measure(
            "residual_pattern_hits",
            sum(r.residual for r in results if r not in lost),
            "hits",
            "==",
            0,
        ),
        measure("profiles", "+".join(sorted(config.pii_profile)), "text"),
        measure("languages", "+".join(sorted(config.pii_languages)), "text"),
        measure("uncovered_languages", len(uncovered), "languages", "==", 0),
        *_leak_measurements(config, canaries, leaked),
    ]
    worst = max(
        (m for m in measurements if m.name.startswith("leak_")),
        key=lambda m: float(m.value or 0) / float(str(m.limit) if m.limit else 1),
    )
    names = "+".join(sorted(config.pii_profile)).upper()
    summary = (
        f"{hits.total()} pieces of personal data replaced in "
        f"{sum(r.hits.total() > 0 for r in results)} of {len(rows)} rows (profile {names}); of "
        f"{len(canaries)} canaries {sum(leaked)} leaked, worst {worst.name.removeprefix('leak_')} "
        f"with {float(worst.value or 0):.0%}."
    )
    if uncovered:
        summary += f" Not covered: {', '.join(uncovered)}."
    return ctx.conclude(
        summary,
        measurements,
        rows={ROWS: kept, REJECTED: len(lost), AUDIT: len(rows), CANARIES: len(canaries)},
    )


def _leak_measurements(
    config: DataConfig, canaries: Sequence[Canary], leaked: Sequence[bool]
) -> list[Measurement]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for canary, leak in zip(canaries, leaked, strict=True):
        outcomes[canary.entity].append(leak)
    wanted = demanded(config.pii_profile)
    measurements = []
    for entity, flags in outcomes.items():
        share = sum(flags) / len(flags)
        measurements.append(
            measure(
                f"leak_{entity}",
                share,
                "share",
                "<=",
                leak_limit(entity, config),
                noise=sqrt(share * (1 - share) / len(flags)),
                # What no profile demands is scrubbed all the same, but does not fail the item.
                on_breach="fail" if entity in wanted else "warn",
            )
        )
    return measurements
