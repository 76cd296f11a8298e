"""A call of a model that another gateway or program made, and the checks of what it states."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAILED = "failed"
_LONGEST_ID = 200
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,127}")
_DIGEST_DIGITS = 12
# What PostgreSQL's bigint and Parquet's int64 hold, and more than any request has.
_MOST_TOKENS = 2**53


class RowError(Exception):
    """A row that can't be taken. The message names the field and quotes nothing of it."""


@dataclass(frozen=True)
class ImportedCall:
    """A call as its source states it.

    Attributes:
        request_id: its id in the ledger, the same whenever the row is read.
        time: Unix time at which it began.
        key: name of whoever paid.
        model: the model asked for.
        upstream: who served it.
        cost: None if the source states none.
        ttft_ms: None if nothing was streamed.
        status: `ok` or `failed`.
        user: the client's own user, as it came.
        messages: the prompt, turn by turn, not scrubbed; None if the source has none.
        answer: the answer, not scrubbed.
    """

    request_id: str
    time: float
    key: str
    model: str
    upstream: str
    model_served: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: float | None
    latency_ms: float
    ttft_ms: float | None
    status: str
    user: str
    messages: list[dict[str, str]] | None
    answer: str | None
    finish_reason: str | None


def identity(value: Any, field: str) -> str:
    """Return an id.

    Raises:
        RowError: if it is missing or no plain text.
    """
    if not isinstance(value, str) or not value or len(value) > _LONGEST_ID:
        raise RowError(f"{field} is missing or longer than {_LONGEST_ID} characters")
    if not value.isprintable():
        raise RowError(f"{field} has characters that can't be printed")
    return value


def tokens(value: Any, field: str) -> int:
    """Return a count of tokens; CSV and OTLP state it as text.

    Raises:
        RowError: if it is no whole number from 0.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        raise RowError(f"{field} must be a whole number of tokens from 0")
    return value


def money(value: Any, field: str) -> float | None:
    """Return an amount, None if none is stated.

    Raises:
        RowError: if it is no number from 0.
    """
    if value is None or value == "":
        return None
    try:
        amount = float(value)
    except (TypeError, ValueError):
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount < math.inf:
        raise RowError(f"{field} must be a number from 0")
    return amount


def span(began: float, ended: float, fields: str) -> float:
    """Return the milliseconds between two Unix times.

    Raises:
        RowError: if the end is before the beginning.
    """
    if ended < began:
        raise RowError(f"{fields}: the end is before the beginning")
    return round((ended - began) * 1e3, 3)


def model_name(*stated: Any) -> str:
    """Return the first of some names of models that is one.

    Raises:
        RowError: if none is.
    """
    for name in stated:
        if isinstance(name, str) and name and len(name) <= _LONGEST_ID and name.isprintable():
            return name
    raise RowError("no model is named")


def plain_name(stated: Any, otherwise: str) -> str:
    """Return a name that is fit for a log; one that isn't is replaced by a short hash of it."""
    if not isinstance(stated, str) or not stated:
        return otherwise
    if _PLAIN_NAME.fullmatch(stated):
        return stated
    return f"{otherwise}-{digest(stated)}"


def digest(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_DIGITS]


def parsed(value: Any) -> Any:
    """Return JSON that may have come as text; None if it is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def text_of(content: Any) -> str:
    """Return the text of a message's content: text itself, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    found = [
        part.get("text", part.get("content"))
        for part in parts
        if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text")
    ]
    return "\n".join(text for text in found if isinstance(text, str))


def turns_of(messages: Any, content: str) -> list[dict[str, str]] | None:
    """Return the turns of a list of messages, None if there are none.

    Args:
        messages: the list.
        content: name of the field that holds a message's content.
    """
    if not isinstance(messages, list):
        return None
    turns = [
        {"role": message["role"], "content": text_of(message.get(content))}
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("role"), str)
    ]
    return turns or None
