"""Find surrogates in scrubbed turns, and the pattern hits that are none of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneline.data.pii.hits import Hit
from tuneline.data.pii.patterns import find
from tuneline.data.tables.rows import Message, Row, with_stand_ins

Find = Callable[[str], Sequence[Hit]]


def residual_hits(
    messages: Sequence[Message], surrogates: Iterable[str], finder: Find = find
) -> int:
    """Count the pattern hits in a row's turns that are not surrogates."""
    values = dict.fromkeys(surrogates, "")
    count = 0
    for message in messages:
        hits = finder(message["content"])
        if hits:
            taken = places(message["content"], values)
            count += sum(not overlaps(hit, taken) for hit in hits)
    return count


def surrogates_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the surrogates in each scrubbed row that holds any, by its id."""
    return {
        row.row_id: [row.messages[s.turn]["content"][s.start : s.end] for s in row.stand_ins]
        for row in with_stand_ins(rows)
    }


def overlaps(hit: Hit, taken: Iterable[tuple[int, int, str]]) -> bool:
    """Return True if a hit shares a character with one of some spans."""
    return any(hit.start < end and start < hit.end for start, end, _ in taken)


def places(text: str, values: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Return the spans of values in a text: whole words, the longest value first, no overlaps."""
    if not values:
        return []
    if not any(value in text for value in values):
        return []
    ordered = sorted(values, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)")
    return [(m.start(), m.end(), values[m[0]]) for m in pattern.finditer(text)]
