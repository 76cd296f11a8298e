"""Keep several rows that differ in their personal data alone.

Such rows are equal once surrogates are masked, so that they are near-duplicates of each other.
Before scrubbing they were different: a name or a number more is what a model learns to copy or to
ignore. Equal source rows get equal surrogates and different ones do not, so the scrubbed rows still
tell how many there were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tuneline.data.near_duplicates.masked import masked_prompt, masked_turn
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import Row

_Form = tuple[str, ...]


def masked_form(row: Row) -> _Form | None:
    """Return the turns of a row with its surrogates masked, None if its prompt holds none."""
    last = len(row.messages) - 1
    if all(span.turn == last for span in row.stand_ins):
        return None
    # The class of a row decides what its answer means.
    meant = normalise(masked_turn(row, last)) if row.label is None else row.label
    return (*(normalise(text) for _, text in masked_prompt(row)), meant)


def varieties(
    rows: Sequence[Row], kept: Sequence[int], members: Iterable[int], most: int
) -> list[int]:
    """Return the rows of a cluster that stay beside the kept ones, as they differ in values alone.

    Args:
        rows: every row.
        kept: rows of the cluster that stay in any case.
        members: all its rows that could stay.
        most: rows of one masked form that may stay, the kept one among them.

    Returns:
        Row numbers; of rows with equal values the one with the smallest row id.
    """
    if most < 2:
        return []
    seen: dict[_Form, set[_Form]] = defaultdict(set)
    for index in kept:
        form = masked_form(rows[index])
        if form is not None:
            seen[form].add(_asked(rows[index]))
    if not seen:
        return []
    chosen = []
    for index in sorted(members, key=lambda index: rows[index].row_id):
        form = masked_form(rows[index])
        if (
            form is None
            or form not in seen
            or len(seen[form]) >= most
            or _asked(rows[index]) in seen[form]
        ):
            continue
        seen[form].add(_asked(rows[index]))
        chosen.append(index)
    return chosen


def differs_in_values_alone(row: Row, kept: Iterable[Row]) -> bool:
    """Return True if a row equals none of the kept ones, but one of them once both are masked."""
    form = masked_form(row)
    if form is None:
        return False
    kept = list(kept)
    return any(masked_form(other) == form for other in kept) and all(
        _asked(other) != _asked(row) for other in kept
    )


def _asked(row: Row) -> _Form:
    """Return the turns before the answer, as they are."""
    return tuple(normalise(m["content"]) for m in row.prompt if m["role"] != "system")
