"""Conversations with tools as plain turns, and back.

Every step reads, compares and changes the text of turns, so that rows keep tools as text: those
declared in the system turn, calls in an answer, their results as a turn of the user. What the model
sees is its template's own form: the turns are read back before a template or a server gets them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

# With a space, so that no vocabulary has them as a token.
_DECLARED, _CALLED, _ANSWERED = "<tools declared>\n", "<tool called>\n", "<tool answered "
_DECLARED_END, _CALLED_END, _ANSWERED_END = (
    "\n</tools declared>", "\n</tool called>", "\n</tool answered>"
)  # fmt: skip
TOOL_MARKERS = (_DECLARED.strip(), _CALLED.strip(), _ANSWERED.strip(), _ANSWERED_END.strip())


def to_plain(
    messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None
) -> list[dict[str, str]]:
    """Return the plain turns of a checked conversation, whose calls have all their results."""
    first = messages[0]["content"] if messages[0]["role"] == "system" else ""
    declared = f"{_DECLARED}{_dump(tools or [])}{_DECLARED_END}"
    turns = [{"role": "system", "content": "\n\n".join(filter(None, [first, declared]))}]
    ids: list[str | None] = []
    for message in messages[messages[0]["role"] == "system" :]:
        role, text = message["role"], message["content"]
        if role != "tool":
            calls = message.get("tool_calls", ())
            ids = [call.get("id") for call in calls]
            turns.append({"role": role, "content": plain_answer(text, calls)})
            continue
        answered = ids.index(message.get("tool_call_id"))
        ids[answered] = ""  # calls without ids are answered in their order
        text = f"{_ANSWERED}{answered + 1}>\n{text}{_ANSWERED_END}"
        if turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n{text}"
        else:
            turns.append({"role": "user", "content": text})
    return turns


def plain_answer(text: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of an answer with calls in OpenAI's form; arguments may be JSON."""
    parts = [text] if text else []
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if isinstance(arguments, str):
            with suppress(ValueError):  # a model may write anything
                arguments = json.loads(arguments)
        parts.append(f"{_CALLED}{_dump({'name': name, 'arguments': arguments})}{_CALLED_END}")
    return "\n".join(parts)


def with_tools(
    messages: Sequence[Mapping[str, str]], *, json_arguments: bool = False
) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Return turns with the calls and results that they hold, and the tools declared in them.

    Calls get ids of their number, and their arguments as objects or as JSON. Turns without tools
    come back as they are.

    Raises:
        ValueError: if what was JSON no longer is.
    """
    if not declares_tools(messages):
        return list(messages), None
    before, _, rest = messages[0]["content"].partition(_DECLARED)
    declared, _, after = rest.partition(_DECLARED_END)
    said = before.removesuffix("\n\n") + after if before else after.removeprefix("\n\n")
    turns: list[dict[str, Any]] = [{"role": "system", "content": said}] if said else []
    number, calls = count(1), list[dict[str, Any]]()
    for message in messages[1:]:
        role, text = message["role"], message["content"]
        if role == "user" and text.startswith(_ANSWERED):
            for part in text.removesuffix(_ANSWERED_END).split(f"{_ANSWERED_END}\n"):
                place, _, result = part.removeprefix(_ANSWERED).partition(">\n")
                call = calls[int(place) - 1]
                named = {"name": call["function"]["name"], "tool_call_id": call["id"]}
                turns.append({"role": "tool", "content": result, **named})
            continue
        text, *parts = text.split(_CALLED) if role == "assistant" else [text]
        functions = [json.loads(part.rstrip().removesuffix(_CALLED_END)) for part in parts]
        for function in functions if json_arguments else ():
            function["arguments"] = _dump(function["arguments"])
        calls = [
            {"id": f"call{next(number):05}", "type": "function", "function": function}
            for function in functions
        ]
        more = {"tool_calls": calls} if calls else {}
        turns.append({"role": role, "content": text.removesuffix("\n") if calls else text, **more})
    return turns, json.loads(declared) or None


def declares_tools(messages: Sequence[Mapping[str, str]]) -> bool:
    """Return True if the turns are those of a conversation with tools."""
    return (
        bool(messages) and messages[0]["role"] == "system" and _DECLARED in messages[0]["content"]
    )


def ends_in_call(messages: Sequence[Mapping[str, str]]) -> bool:
    """Return True if the last turn calls a tool."""
    return declares_tools(messages) and _CALLED in messages[-1]["content"]


def is_result(message: Mapping[str, str]) -> bool:
    """Return True for a turn that answers a call rather than begins an exchange."""
    return message["role"] == "user" and message["content"].startswith(_ANSWERED)


def request_fields(messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the fields `messages` and `tools` of a request in OpenAI's form."""
    turns, tools = with_tools(messages, json_arguments=True)
    return {"messages": [dict(turn) for turn in turns], **({"tools": tools} if tools else {})}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
