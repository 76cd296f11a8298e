"""Read a row's turns as comparisons see them: no system turn, surrogates replaced by their type."""

from __future__ import annotations

from collections.abc import Iterator

from tuneline.data.tables.rows import Row


def masked_prompt(row: Row) -> Iterator[tuple[str, str]]:
    """Give the role and the masked text of each turn before the answer."""
    for number, message in enumerate(row.prompt):
        if message["role"] != "system":
            yield message["role"], masked_turn(row, number)


def masked_turn(row: Row, number: int) -> str:
    """Return the text of a turn, its surrogates replaced by their type."""
    text = row.messages[number]["content"]
    for span in sorted(row.stand_ins, key=lambda span: -span.start):
        if span.turn == number:
            text = f"{text[: span.start]}{span.entity}{text[span.end :]}"
    return text
