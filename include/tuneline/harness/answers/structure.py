"""Find JSON in an answer, and reduce an answer to its structure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tuneline.data.conversations.answers import answer_object


def find_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in a text, also in prose or in a code fence, or None."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        start = text.find("{", start + 1)
    return None


def canonical(value: Any) -> str:
    """Return the same text for equal JSON values, whatever their spacing or order."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def structure_of(text: str, label_field: str | None) -> str:
    """Return the parsed structure of an answer: its keys, and each value that is not free text.

    Strings other than the label are prose, of which only the presence counts. An answer that
    is not a JSON object is its own structure.

    Args:
        text: the answer.
        label_field: the field that holds the class; None without a class.
    """
    parsed = answer_object(text)
    if parsed is None:
        return text

    def reduce(key: str | None, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: reduce(str(name), inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [reduce(None, inner) for inner in value]
        return "…" if isinstance(value, str) and key != label_field else value

    return canonical(reduce(None, parsed))
