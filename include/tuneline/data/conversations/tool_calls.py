"""Check conversations with tools, and write them as plain turns (`models.tool_turns`).

The template decides how a model reads tools. A row is rejected if it does not write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.data.conversations.formats import Malformed, text_of
from tuneline.data.conversations.turn_checks import check_injection, check_unicode
from tuneline.data.rendering.renderer import Renderer, TemplateRefused
from tuneline.data.sources.records import parse_json
from tuneline.data.tables.rows import Message
from tuneline.models.tool_turns import TOOL_MARKERS, to_plain

_TURN_FIELDS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Conversation:
    """A well-formed conversation with tools, in the form for templates: arguments are objects."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None

    @property
    def ends_in_call(self) -> bool:
        """True if the last answer calls a tool."""
        return bool(self.messages[-1].get("tool_calls"))


def uses_tools(value: Any) -> bool:
    """Return True if a record in the messages form declares, calls or answers tools."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return False
    return bool(value.get("tools")) or any(
        isinstance(turn, dict)
        and (turn.get("role") in ("tool", "function") or any(turn.get(f) for f in _TURN_FIELDS))
        for turn in value["messages"]
    )


def read_conversation(value: dict[str, Any]) -> Conversation:
    """Check a record with tools; Malformed if a declaration, call, argument or answer is."""
    tools = _declared(value.get("tools"))
    known = {tool["function"]["name"]: tool["function"] for tool in tools or ()}
    messages: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    for number, turn in enumerate(value["messages"], 1):
        if not isinstance(turn, dict):
            raise Malformed(f"wrong_type: turn {number} is a {type(turn).__name__}, not an object")
        role = turn.get("role")
        if turn.get("function_call") or role == "function":
            raise Malformed(f"tool_call: turn {number} uses `function_call`; write `tool_calls`")
        if role == "tool":
            messages.append(_answer(number, turn, pending))
            continue
        if pending:
            raise Malformed(
                f"tool_call_id: turn {number} comes before {pending[0]['function']['name']!r:.60} "
                "has its answer"
            )
        if role not in ("system", "user", "assistant"):
            raise Malformed(f"unknown_role: turn {number} has the role {role!r:.40}")
        before = messages[-1]["role"] if messages else None
        if before not in _BEFORE[role]:
            raise Malformed(
                f"role_order: turn {number} is from {role}, after {before or 'nothing'}"
            )
        if turn.get("tool_calls"):
            if role != "assistant":
                raise Malformed(f"tool_call: turn {number} is from {role}, which calls no tools")
            pending = _calls(number, turn["tool_calls"], known if tools is not None else None)
            said = text_of(turn["content"], f"turn {number}") if turn.get("content") else ""
            messages.append({"role": role, "content": said, "tool_calls": list(pending)})
        else:
            messages.append(
                {"role": role, "content": text_of(turn.get("content"), f"turn {number}")}
            )
    if not messages or messages[-1]["role"] != "assistant":
        raise Malformed("no_answer: the last turn is not the assistant's")
    return Conversation(messages, tools)


# Roles of the turn before; None is the beginning.
_BEFORE: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
}


def _function(value: Any, fault: str) -> tuple[dict[str, Any], str]:
    """Return the function of a declaration or a call, and its name."""
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise Malformed(fault)
    return function, name


def _declared(tools: Any) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    if isinstance(tools, str):
        # Tables without nested columns hold them as JSON.
        tools = _json(tools, "tool_declaration: `tools` is a text that is not JSON")
    if not isinstance(tools, list):
        raise Malformed("tool_declaration: `tools` is not a list")
    names: set[str] = set()
    for number, tool in enumerate(tools, 1):
        missing = f"tool_declaration: tool {number} has no function with a name"
        function, name = _function(tool, missing)
        if name in names:
            raise Malformed(f"tool_declaration: {name!r:.60} is declared twice")
        if not isinstance(function.get("parameters", {}), dict):
            raise Malformed(
                f"tool_declaration: the parameters of {name!r:.60} are not a JSON Schema"
            )
        names.add(name)
    return tools


def _json(text: str, fault: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        raise Malformed(fault) from None


def _calls(
    number: int, calls: Any, known: dict[str, dict[str, Any]] | None
) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise Malformed(f"tool_call: `tool_calls` of turn {number} is not a list")
    found: list[dict[str, Any]] = []
    ids: set[str] = set()
    for call in calls:
        nameless = f"tool_call: turn {number} calls no function with a name"
        function, name = _function(call, nameless)
        if call.get("type", "function") != "function":
            raise Malformed(f"tool_call: turn {number} has a call of type {call['type']!r:.40}")
        if known is not None and name not in known:
            raise Malformed(f"tool_undeclared: turn {number} calls {name!r:.60}, not in `tools`")
        where = f"tool_arguments: turn {number} calls {name!r:.60} with"
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments, f"{where} arguments that are not JSON")
        if not isinstance(arguments, dict):
            raise Malformed(f"{where} arguments that are not a JSON object")
        if known is not None:
            _check_arguments(arguments, known[name].get("parameters"), where)
        found.append({"type": "function", "function": {"name": name, "arguments": arguments}})
        identity = call.get("id")
        if identity is not None:
            if not isinstance(identity, str) or identity in ids:
                raise Malformed(
                    f"tool_call_id: turn {number} has an id twice, or one that is not text"
                )
            ids.add(identity)
            found[-1]["id"] = identity
    if ids and len(ids) < len(found):
        raise Malformed(f"tool_call_id: turn {number} gives ids to some of its calls only")
    return found


def _check_arguments(arguments: dict[str, Any], schema: Any, where: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    if not schema:
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        raise Malformed(f"{where} parameters that are not a JSON Schema") from None
    fault = next(Draft202012Validator(schema).iter_errors(arguments), None)
    if fault is not None:
        place = "/".join(map(str, fault.absolute_path)) or "their top level"
        raise Malformed(f"{where} arguments that miss its schema: at {place}, {fault.validator}")


def _answer(number: int, turn: dict[str, Any], pending: list[dict[str, Any]]) -> dict[str, Any]:
    """Check a tool's answer; the call that it answers is removed from the pending ones."""
    if not pending:
        raise Malformed(f"tool_call_id: turn {number} answers no call")
    identity = turn.get("tool_call_id")
    if "id" in pending[0]:
        call = next((call for call in pending if call["id"] == identity), None)
        if call is None:
            raise Malformed(f"tool_call_id: turn {number} answers {identity!r:.60}, not a call")
    elif identity is not None:
        raise Malformed(f"tool_call_id: turn {number} answers {identity!r:.60}, calls have no ids")
    else:
        call = pending[0]
    pending.remove(call)
    content = text_of(turn.get("content"), f"turn {number}")
    answer = {"role": "tool", "content": content, "name": call["function"]["name"]}
    return answer if identity is None else {**answer, "tool_call_id": identity}


def plain_turns(
    conversation: Conversation, renderer: Renderer, markers: tuple[str, ...]
) -> list[Message]:
    """Return the turns that a row keeps; Malformed if the template does not write tools."""
    said, called = [message["content"] for message in conversation.messages], list[str]()
    for message in conversation.messages:
        for call in message.get("tool_calls", ()):
            # Templates write a call in forms of their own, but its name and arguments they all do.
            called += [call["function"]["name"], *_strings(call["function"]["arguments"])]
    every = [*_strings(conversation.tools or []), *said, *called]
    texts = [{"role": "tool", "content": text} for text in every]
    fault = check_unicode(texts) or check_injection(texts, (*markers, *TOOL_MARKERS))
    if fault is not None:
        code, _, detail = fault.partition(": ")
        raise Malformed(f"{code}: a text of the conversation{detail[detail.find(' holds') :]}")
    if called and not renderer.call_form.end:
        raise Malformed("tools_unsupported: the model's chat template writes no calls")
    turns = to_plain(conversation.messages, conversation.tools)
    try:
        text = renderer.written(turns)
    except TemplateRefused as error:
        raise Malformed(f"template_refused: {str(error)[:120]}") from None
    # What a template with tools writes: names, calls, arguments, answers.
    names = [tool["function"]["name"] for tool in conversation.tools or ()]
    for wanted in [*names, *map(str.strip, said), *called]:
        if wanted not in text and json.dumps(wanted, ensure_ascii=False)[1:-1] not in text:
            raise Malformed(
                "tools_unsupported: the model's chat template does not write all of them"
            )
    return turns


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def added_markers(renderer: Renderer) -> tuple[str, ...]:
    """Return a tokenizer's tokens that are not special but mark calls, as `<tool_call>`."""
    tokens: Sequence[Any] = list(renderer.tokenizer.added_tokens_decoder.values())
    return tuple(sorted(t.content for t in tokens if not t.special and t.content[:1] in ("<", "[")))
