"""Strict JSON: no repeated keys, no NaN, no infinity, no endless nesting."""

from __future__ import annotations

import json
import math
from typing import Any

# Deeper than any conversation; beyond, showing a value may exhaust the interpreter's stack.
MAX_DEPTH = 100


class DuplicateKey(ValueError):
    """A JSON object names a key twice."""


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: if it is not JSON; `DuplicateKey` for a repeated key.
        RecursionError: if it is nested too deeply.
    """
    value = json.loads(
        text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
    )
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise RecursionError(f"more than {MAX_DEPTH} levels")
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Return True if a value has more levels than the limit."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            entry
            for holder in level
            if isinstance(holder, dict | list)
            for entry in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
