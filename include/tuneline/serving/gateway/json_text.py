"""JSON by orjson, and what it refuses by the standard library.

orjson refuses texts that Python's own reader takes, such as lone surrogates, which an engine sends
when it cuts an answer inside a character. One difference stays: integers beyond 64 bits become
floats.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def load_json(text: str | bytes) -> Any:
    """Read a JSON text.

    Raises:
        ValueError: if it is none, holds `NaN` or `Infinity`, or is nested too deeply to be read.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text, parse_constant=_refuse)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def dump_json(value: Any) -> bytes:
    """Write a value that came from `load_json` as compact JSON in UTF-8.

    Raises:
        ValueError: if it is nested too deeply to be written.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python would read and an upstream would not."""
    raise ValueError(constant)
