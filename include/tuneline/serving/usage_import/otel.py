"""Spans of OpenTelemetry with the semantic conventions of generative AI (`gen_ai.*`).

The file is what the collector's file exporter writes: OTLP in JSON, a batch a line. A span is a
row if it is a call of a model. Spans of agents and tools are none, since they repeat the usage of
the calls inside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuneline.serving.usage_import.call import (
    FAILED,
    ImportedCall,
    RowError,
    model_name,
    parsed,
    plain_name,
    span,
    text_of,
    tokens,
    turns_of,
)

_CALLS = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_HEX = re.compile(r"[0-9a-fA-F]+")
_TRACE_DIGITS, _SPAN_DIGITS = 32, 16
_NANO = 1e9
_ERROR = (2, "STATUS_CODE_ERROR")
# Names of now and of versions before 1.37, in this order.
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED = ("gen_ai.usage.cache_read.input_tokens",)
_FLAT = re.compile(r"gen_ai\.(prompt|completion)\.(\d{1,4})\.(role|content)")


def spans_of(batch: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the attributes of the resource and each span of a batch.

    Raises:
        RowError: if it is no batch of spans.
    """
    resources = batch.get("resourceSpans") if isinstance(batch, Mapping) else None
    if not isinstance(resources, list):
        raise RowError("no batch of spans: `resourceSpans` is missing")
    for entry in resources:
        resource = _mapping(_mapping(entry).get("resource"))
        for scope in _list(_mapping(entry).get("scopeSpans")):
            for found in _list(_mapping(scope).get("spans")):
                yield attributes_of(resource), _mapping(found)


def is_call(found: Mapping[str, Any]) -> bool:
    """Return True if a span is a call of a model."""
    attributes = attributes_of(found)
    operation = attributes.get("gen_ai.operation.name")
    if operation is None:
        return "gen_ai.request.model" in attributes and any(map(attributes.get, _INPUT))
    return operation in _CALLS


def call_of(resource: Mapping[str, Any], found: Mapping[str, Any]) -> ImportedCall:
    """Return the call that a span states.

    Raises:
        RowError: naming the attribute that is wrong.
    """
    attributes = attributes_of(found)
    for event in _list(found.get("events")):
        # Prompts may be in an event of the span.
        attributes = {**attributes_of(_mapping(event)), **attributes}
    trace = _hex(found.get("traceId"), _TRACE_DIGITS, "traceId")
    own = _hex(found.get("spanId"), _SPAN_DIGITS, "spanId")
    began, ended = _time(found, "startTimeUnixNano"), _time(found, "endTimeUnixNano")
    asked, answered = (attributes.get(f"gen_ai.{w}.model") for w in ("request", "response"))
    failed = _mapping(found.get("status")).get("code") in _ERROR
    provider = attributes.get("gen_ai.provider.name") or attributes.get("gen_ai.system")
    prompt, answer = _texts(attributes)
    reasons = attributes.get("gen_ai.response.finish_reasons")
    embeds = attributes.get("gen_ai.operation.name") == "embeddings"
    return ImportedCall(
        request_id=f"otel:{trace}/{own}",
        time=began,
        key=plain_name(resource.get("service.name"), "otel"),
        model=model_name(asked, answered),
        upstream=plain_name(provider, "otel"),
        model_served=model_name(answered, asked),
        prompt_tokens=_tokens(attributes, _INPUT, needed=not failed),
        cached_tokens=_tokens(attributes, _CACHED, needed=False),
        completion_tokens=_tokens(attributes, _OUTPUT, needed=not failed and not embeds),
        cost=None,
        latency_ms=span(began, ended, "startTimeUnixNano, endTimeUnixNano"),
        ttft_ms=None,
        status=FAILED if failed else "ok",
        user=next(
            (u for n in ("enduser.id", "user.id") if isinstance(u := attributes.get(n), str)), ""
        ),
        messages=prompt,
        answer=answer,
        finish_reason=reasons[0] if isinstance(reasons, list) and reasons else None,
    )


def attributes_of(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span, an event or a resource, by name."""
    return {
        str(entry.get("key")): _value(entry.get("value"))
        for entry in map(_mapping, _list(holder.get("attributes")))
    }


def _value(value: Any) -> Any:
    """Return a value of OTLP's JSON, whose only field names its type."""
    stated = _mapping(value)
    if "arrayValue" in stated:
        return [_value(v) for v in _list(_mapping(stated["arrayValue"]).get("values"))]
    if "kvlistValue" in stated:
        entries = map(_mapping, _list(_mapping(stated["kvlistValue"]).get("values")))
        return {str(entry.get("key")): _value(entry.get("value")) for entry in entries}
    return next(iter(stated.values()), None)


def _texts(attributes: Mapping[str, Any]) -> tuple[list[dict[str, str]] | None, str | None]:
    """Return prompt and answer, where the instrumentation was told to record them."""
    turns = turns_of(parsed(attributes.get("gen_ai.input.messages")), "parts")
    if turns is None:
        return _flat_texts(attributes)
    if system := text_of(parsed(attributes.get("gen_ai.system_instructions"))):
        turns = [{"role": "system", "content": system}, *turns]
    answers = turns_of(parsed(attributes.get("gen_ai.output.messages")), "parts")
    return turns, answers[0]["content"] if answers else None


def _flat_texts(attributes: Mapping[str, Any]) -> tuple[list[dict[str, str]] | None, str | None]:
    """Return the texts where each turn is attributes of its own: `gen_ai.prompt.0.content`."""
    found: dict[str, dict[int, dict[str, str]]] = {"prompt": {}, "completion": {}}
    for name, value in attributes.items():
        if isinstance(value, str) and (match := _FLAT.fullmatch(name)):
            side, number, field = match.groups()
            found[side].setdefault(int(number), {})[field] = value
    turns = [
        {"role": turn["role"], "content": turn.get("content", "")}
        for _, turn in sorted(found["prompt"].items())
        if "role" in turn
    ]
    answers = [turn.get("content") for _, turn in sorted(found["completion"].items())]
    return turns or None, answers[0] if answers else None


def _tokens(attributes: Mapping[str, Any], names: tuple[str, ...], *, needed: bool) -> int:
    for name in names:
        if (value := attributes.get(name)) is not None:
            return tokens(value, name)
    if needed:
        raise RowError(f"{names[0]} is missing")
    return 0


def _time(found: Mapping[str, Any], field: str) -> float:
    value = found.get(field)
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise RowError(f"{field} must be a time in nanoseconds")
    return value / _NANO


def _hex(value: Any, digits: int, field: str) -> str:
    if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
        raise RowError(f"{field} must be {digits} hex digits")
    return value.lower()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
