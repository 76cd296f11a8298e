"""Parse answers that are JSON strictly, and write them back in their own style."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tuneline.data.sources.strict_json import parse_json
from tuneline.data.tables.rows import Message

_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"separators": separators, "ensure_ascii": ensure_ascii}
    for separators in ((",", ":"), (", ", ": "))
    for ensure_ascii in (False, True)
)
# Shorter numbers in an answer are no text.
_MIN_NUMBER_DIGITS = 9


def parse_answer(text: str) -> Any:
    """Return an answer's JSON value, None if it is not JSON."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return None


def answer_object(text: str) -> dict[str, Any] | None:
    """Return an answer's JSON object, None if it is anything else."""
    if not text.lstrip().startswith("{"):
        return None
    value = parse_answer(text)
    return value if isinstance(value, dict) else None


def dump_like(value: Any, original: str) -> str:
    """Write a JSON value in the style of the original text."""
    parsed = parse_answer(original)
    style = next((s for s in _STYLES if json.dumps(parsed, **s) == original), _STYLES[2])
    return json.dumps(value, **style)


def map_texts(message: Message, change: Callable[[str], str], label_field: str | None) -> Message:
    """Apply a change to the texts of a turn; JSON answers stay JSON, labels stay as they are.

    The texts of a JSON answer are its strings, and numbers of at least nine digits.
    """
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
    if isinstance(value, int | float) and len(str(value)) >= _MIN_NUMBER_DIGITS:
        changed = change(str(value))
        return value if changed == str(value) else changed
    return value
