"""Detect the form of rows and turn them into turns.

A record in another form than most of its file is rejected, since a mix is more often an accident.
Alpaca is the form of Taori et al., 2023 (`tatsu-lab/stanford_alpaca`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tuneline.data.tables.rows import Message
from tuneline.machine.linear_pattern import LinearPattern

FORMS = ("messages", "sharegpt", "alpaca", "prompt_completion", "chatml_text", "llama3_text")

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_CHATML_TURN = LinearPattern(r"(?s)<\|im_start\|>([a-z]+)\n(.*?)<\|im_end\|>")
_LLAMA3_TURN = LinearPattern(
    r"(?s)<\|start_header_id\|>([a-z]+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>"
)
_CHATML_REST = re.compile(r"(<\|endoftext\|>|\s)*")
_LLAMA3_REST = re.compile(r"(<\|begin_of_text\|>|<\|end_of_text\|>|\s)*")


class Malformed(ValueError):
    """A record does not have the form it should have; the message is a reject's reason."""


# The fields of each form; one of its sets is enough.
_FIELDS: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    ("messages", (frozenset({"messages"}),)),
    ("sharegpt", (frozenset({"conversations"}), frozenset({"conversation"}))),
    ("alpaca", (frozenset({"instruction", "output"}), frozenset({"instruction", "response"}))),
    ("prompt_completion", (frozenset({"prompt", "completion"}), frozenset({"prompt", "response"}))),
)
_TEXT_MARKERS = {"<|im_start|>": "chatml_text", "<|start_header_id|>": "llama3_text"}


def form_of(value: Any) -> str | None:
    """Return the form that a record has by its fields, None if it is none of `FORMS`."""
    if not isinstance(value, dict):
        return None
    for form, sets in _FIELDS:
        if any(fields <= value.keys() for fields in sets):
            return form
    text = value.get("text")
    if isinstance(text, str):
        return next((form for marker, form in _TEXT_MARKERS.items() if marker in text), None)
    return None


def detect(forms: Iterable[str | None]) -> str | None:
    """Return the commonest form, None if no record has one."""
    counts = Counter(forms)
    known = [(counts[form], -FORMS.index(form), form) for form in FORMS if counts[form]]
    return max(known)[2] if known else None


def to_messages(value: Any, form: str) -> list[Message]:
    """Turn a record into turns, which are checked elsewhere; Malformed if it has another form."""
    found = form_of(value)
    if found != form:
        raise Malformed(f"unknown_format: {found or describe(value)} in a file of {form}")
    if form == "messages":
        return _messages(value["messages"])
    if form == "chatml_text":
        return _from_text(value["text"], _CHATML_TURN, _CHATML_REST)
    if form == "llama3_text":
        return _from_text(value["text"], _LLAMA3_TURN, _LLAMA3_REST)
    turns = _turns_of(value, form)
    if value.get("system"):
        turns.insert(0, {"role": "system", "content": text_of(value["system"], "`system`")})
    return turns


def _turns_of(value: dict[str, Any], form: str) -> list[Message]:
    """Return the turns of a form whose system turn has a field for itself."""
    if form == "sharegpt":
        return _sharegpt(value)
    if form == "alpaca":
        return _alpaca(value)
    prompt, completion = value["prompt"], value.get("completion", value.get("response"))
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages([*prompt, *completion])
    return _exchange(text_of(prompt, "`prompt`"), text_of(completion, "`completion`"))


def describe(value: Any) -> str:
    """Describe a record without a known form in a few words."""
    if isinstance(value, dict):
        keys = ", ".join(repr(str(key)[:30]) for key in list(value)[:6])
        return f"a record with {keys or 'no fields'}"
    return f"a {type(value).__name__}"


def _turns(turns: Any, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the turns of a field with their numbers from 1."""
    if not isinstance(turns, list) or not turns:
        raise Malformed(f"wrong_type: `{field}` is not a list of turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise Malformed(f"wrong_type: turn {number} is a {type(turn).__name__}, not an object")
        yield number, turn


def _messages(turns: Any) -> list[Message]:
    messages: list[Message] = []
    for number, turn in _turns(turns, "messages"):
        if turn.get("tool_calls") or turn.get("function_call"):
            raise Malformed(f"tool_call: turn {number} calls a tool, which only whole records can")
        role = turn.get("role")
        if not isinstance(role, str):
            raise Malformed(f"unknown_role: turn {number} has the role {role!r:.40}")
        messages.append({"role": role, "content": text_of(turn.get("content"), f"turn {number}")})
    return messages


def text_of(content: Any, where: str) -> str:
    """Return the text of a turn, which may be a list of text parts; Malformed if it is neither."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    kind = "missing" if content is None else f"a {type(content).__name__}"
    raise Malformed(f"wrong_type: the content of {where} is {kind}, not text")


def _sharegpt(value: dict[str, Any]) -> list[Message]:
    messages: list[Message] = []
    turns = value.get("conversations", value.get("conversation"))
    for number, turn in _turns(turns, "conversations"):
        sender = turn.get("from", turn.get("role"))
        role = _SHAREGPT_ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise Malformed(f"unknown_role: turn {number} is from {sender!r:.40}")
        text = turn.get("value", turn.get("content"))
        messages.append({"role": role, "content": text_of(text, f"turn {number}")})
    return messages


def _alpaca(value: dict[str, Any]) -> list[Message]:
    instruction = text_of(value["instruction"], "`instruction`")
    more = value.get("input")
    if more is not None and not isinstance(more, str):
        raise Malformed(f"wrong_type: `input` is a {type(more).__name__}, not text")
    if more and more.strip():
        instruction = f"{instruction}\n\n{more}"
    return _exchange(instruction, text_of(value.get("output", value.get("response")), "`output`"))


def _exchange(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _from_text(text: str, turn: LinearPattern, rest: re.Pattern[str]) -> list[Message]:
    """Cut a rendered conversation into turns; only `rest` may stand between them."""
    messages, at = [], 0
    for match in turn.finditer(text):
        if not rest.fullmatch(text, at, match.start()):
            raise Malformed(f"broken_template: stray text at character {at}")
        messages.append({"role": match[1], "content": text[slice(*match.span(2))]})
        at = match.end()
    if not messages or not rest.fullmatch(text, at):
        raise Malformed(f"broken_template: a turn without its end at character {at}")
    return messages
