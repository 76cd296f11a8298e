"""Parse answers that are JSON strictly, and write them back in their own style."""

from __future__ import annotations

import json
from typing import Any

from tuneline.data.sources.strict_json import parse_json

_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"separators": separators, "ensure_ascii": ensure_ascii}
    for separators in ((",", ":"), (", ", ": "))
    for ensure_ascii in (False, True)
)


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
