"""Read the tool calls of an answer, in the forms that chat templates write, and compare them.

An answer arrives as plain text, as the model's template writes calls: JSON objects with `name` and
`arguments` (ChatML, Qwen, Mistral) or `parameters` (Llama 3), alone, in a list, in tags, or in the
form of OpenAI's API (`function`, `tool_calls`, arguments as text).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuneline.harness.answers.structure import canonical


@dataclass(frozen=True, order=True)
class ToolCall:
    """A call: the tool's name, and its arguments as canonical JSON."""

    name: str
    arguments: str


def tool_calls(text: str) -> list[ToolCall]:
    """Return the calls of an answer, sorted; empty if it calls nothing.

    Parallel calls have no order, so that answers compare as sets that may hold a call twice.
    """
    return sorted(call for value in _json_values(text) for call in _calls(value))


def same_calls(answer: str, expected: str) -> bool:
    """Return True if an answer makes the expected calls: each name, and every argument's value.

    Where no call is expected, an answer without a call is right, whatever it says (the category
    `irrelevance` of the Berkeley Function-Calling Leaderboard).
    """
    return tool_calls(answer) == tool_calls(expected)


def _json_values(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists of a text that lie in no other."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at] not in "{[":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        yield value


def _calls(value: Any) -> Iterator[ToolCall]:
    if isinstance(value, list):
        for entry in value:
            yield from _calls(entry)
    if not isinstance(value, dict):
        return
    for nested in ("tool_calls", "function"):
        if isinstance(value.get(nested), list | dict):
            yield from _calls(value[nested])
            return
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return
    if isinstance(value.get("name"), str) and isinstance(arguments, dict):
        yield ToolCall(value["name"], canonical(_plain_numbers(arguments)))


def _plain_numbers(value: Any) -> Any:
    """Write 2.0 as 2, which JSON does not tell apart."""
    if isinstance(value, dict):
        return {key: _plain_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
