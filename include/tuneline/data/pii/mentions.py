"""Find the values of a row wherever else its conversation says them, whole, in part or nearly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from tuneline.data.pii.dialogue import may_be_said_again, repeated_values
from tuneline.data.pii.echoes import echoes
from tuneline.data.pii.hits import Hit, resolve
from tuneline.data.pii.numbers import alike

_MOST_VALUES = 200


def mentions_of(
    found: Mapping[str, list[Hit]], is_name_part: Callable[[str], bool], *, loosely: bool
) -> Callable[[str], list[Hit]]:
    """Return a finder of the values of a row in its texts.

    Args:
        found: hits of each text of the row; they may overlap.
        is_name_part: True for a word that can be looked for on its own.
        loosely: True if numbers count that are only like those of the row.
    """
    values: dict[tuple[str, str], None] = {}
    rest: list[str] = []
    for text, hits in found.items():
        at = 0
        for hit in resolve(text, hits):
            values[hit.entity, text[hit.start : hit.end]] = None
            rest.append(text[at : hit.start])
            at = hit.end
        rest.append(text[at:])
    # A conversation says few values again; a list of thousands is none.
    values = dict(islice(values.items(), _MOST_VALUES))
    again = repeated_values(values if may_be_said_again(values, rest) else (), is_name_part)
    if not loosely:
        return again
    pins = frozenset(
        len(value) for entity, value in values if entity == "PASSWORD" and value.isdigit()
    )
    echo = echoes(values, is_name_part)
    if not pins and echo is None:
        return again

    def find(text: str) -> list[Hit]:
        hits = [*again(text), *(Hit(*found) for found in alike(text, pins))]
        return [*hits, *(echo(text) if echo else ())]

    return find
