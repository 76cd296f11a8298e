"""Visit the texts of a row: whole turns, and the strings inside a JSON answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.data.conversations.answers import answer_object, dump_like
from tuneline.data.near_duplicates.boilerplate import Affixes
from tuneline.data.pii.parts import parts
from tuneline.data.tables.rows import Message

# A number in a JSON answer with fewer digits identifies nobody.
MIN_NUMBER_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Segment:
    """A text of a row: a turn or a value of a JSON answer, a long one in parts.

    Attributes:
        turn: number of its turn.
        text: the text.
        start: place of its first character in the turn or value.
    """

    turn: int
    text: str
    start: int = 0


def segments(messages: Sequence[Message], label_field: str | None) -> list[Segment]:
    """Return the texts of a row, in the order in which `map_turn` visits them."""
    found: list[Segment] = []
    for turn, message in enumerate(messages):

        def note(text: str, turn: int = turn) -> str:
            found.extend(Segment(turn, part, start) for start, part in parts(text))
            return text

        map_turn(message, note, label_field)
    return found


def own_part(piece: Segment, message: Message, affixes: Affixes) -> tuple[int, int]:
    """Return start and end of what a text says without the affixes that user turns share."""
    start, end, size = 0, len(message["content"]), len(piece.text)
    if message["role"] == "user":
        start, end = affixes.cut(message["content"])
    return min(max(0, start - piece.start), size), min(max(0, end - piece.start), size)


def map_turn(message: Message, change: Callable[[str], str], label_field: str | None) -> Message:
    """Apply a change to the texts of a turn; JSON answers stay JSON, labels stay as they are."""
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
