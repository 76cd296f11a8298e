"""The APIs that the gateway serves: their paths, and the fields whose types it checks.

What is known here is checked before an engine is asked, and published in the OpenAPI document.
Fields that are not known here reach an upstream only where its configuration names them: engines
have some that choose a server, a cache or code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# More choices than this, over all prompts of a request, are a mistake, or an attack on the budget
# of a key.
MOST_CHOICES = 128
# OpenAI's own limit.
MOST_INPUTS = 2_048
_INTEGER = {"type": "integer"}


class Field(NamedTuple):
    """A field of a request body.

    Attributes:
        accepts: function that returns True for a value of the right type.
        says: the type in words, as an error states it after "must be".
        schema: the type as JSON Schema.
    """

    accepts: Callable[[Any], bool]
    says: str
    schema: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Api:
    """One of OpenAI's APIs.

    Attributes:
        operation: its name in OpenTelemetry's GenAI conventions.
        path: where it lies below `/v1`.
        holds: the field of an answer that makes it one.
        required: the fields that a request must have, beside `model`.
        fields: the known fields by name.
        streams: True if an answer can be streamed.
        falls_back: False if another model's answer is no substitute.
    """

    operation: str
    path: str
    holds: str
    required: str
    fields: Mapping[str, Field]
    streams: bool = True
    falls_back: bool = True


def _is_integer(value: Any) -> bool:
    # JSON knows no difference between 1 and 1.0; True is an int in Python only.
    return type(value) is int or (type(value) is float and value.is_integer())


def _integer(least: int | None = None, most: int | None = None) -> Field:
    bounds = {"minimum": least, "maximum": most}
    says = "a whole number"
    if most is not None:
        says += f" from {least} to {most}"
    elif least is not None:
        says += f" of at least {least}"

    def accepts(value: Any) -> bool:
        return (
            _is_integer(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
        )

    schema = _INTEGER | {name: bound for name, bound in bounds.items() if bound is not None}
    return Field(accepts, says, schema)


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(accepts, value))


def _is_text(value: Any) -> bool:
    return type(value) is str


def _either(says: str, *fields: Field) -> Field:
    return Field(
        lambda value: any(field.accepts(value) for field in fields),
        says,
        {"anyOf": [field.schema for field in fields]},
    )


def _one_of(*values: str) -> Field:
    return Field(lambda value: value in values, " or ".join(values), {"enum": list(values)})


# 1e999 is read as infinity, which no JSON can state.
_NUMBER = Field(
    lambda value: type(value) is int or (type(value) is float and math.isfinite(value)),
    "a number",
    {"type": "number"},
)
_BOOLEAN = Field(lambda value: type(value) is bool, "true or false", {"type": "boolean"})
_TEXT = Field(_is_text, "a string", {"type": "string"})
_OBJECT = Field(_is_object, "an object", {"type": "object"})
_OBJECTS = Field(
    _list_of(_is_object), "a list of objects", {"type": "array", "items": {"type": "object"}}
)
_TEXTS = Field(
    _list_of(_is_text), "a list of strings", {"type": "array", "items": {"type": "string"}}
)
# Passed on as it is.
_ANYTHING = Field(lambda _: True, "anything", {})
_CONTENT = _either("a string or a list of objects", _TEXT, _OBJECTS)


def _is_message(value: Any) -> bool:
    if not _is_object(value) or type(value.get("role")) is not str:
        return False
    content = value.get("content")
    return content is None or _CONTENT.accepts(content)


_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"anyOf": [*_CONTENT.schema["anyOf"], {"type": "null"}]},
    },
}
_MESSAGES = Field(
    lambda value: _list_of(_is_message)(value) and bool(value),
    "a list with at least one message",
    {"type": "array", "minItems": 1, "items": _MESSAGE},
)
_TOKENS = {"type": "array", "minItems": 1, "items": _INTEGER}


def _prompts(most: int) -> Field:
    several = {"type": "array", "minItems": 1, "maxItems": most}
    return Field(
        lambda value: (
            _is_text(value)
            or _is_tokens(value)
            or (
                bool(value)
                and (_list_of(_is_text)(value) or _list_of(_is_tokens)(value))
                and len(value) <= most
            )
        ),
        f"a string, a list of token ids, or a list of at most {most} of either",
        {
            "anyOf": [
                {"type": "string"},
                _TOKENS,
                {**several, "items": {"type": "string"}},
                {**several, "items": _TOKENS},
            ]
        },
    )


def _is_tokens(value: Any) -> bool:
    return _list_of(_is_integer)(value) and bool(value)


MODEL = Field(
    lambda value: _is_text(value) and bool(value),
    "the id of a model; GET /v1/models lists them",
    {"type": "string", "minLength": 1},
)
_SAMPLING = {
    "frequency_penalty": _NUMBER,
    "logit_bias": _OBJECT,
    "n": _integer(1, MOST_CHOICES),
    "presence_penalty": _NUMBER,
    "seed": _integer(),
    "stop": _either("a string or a list of strings", _TEXT, _TEXTS),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "user": _TEXT,
}

CHAT = Api(
    operation="chat",
    path="/chat/completions",
    holds="choices",
    required="messages",
    fields={
        "messages": _MESSAGES,
        "logprobs": _BOOLEAN,
        "max_completion_tokens": _integer(1),
        "max_tokens": _integer(1),
        "metadata": _OBJECT,
        "parallel_tool_calls": _BOOLEAN,
        "response_format": _OBJECT,
        "tool_choice": _either("a string or an object", _TEXT, _OBJECT),
        "tools": _OBJECTS,
        "top_logprobs": _integer(0, 20),
        **_SAMPLING,
        **dict.fromkeys(
            (
                *("audio", "function_call", "functions", "modalities", "moderation", "prediction"),
                *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
                *("reasoning_effort", "safety_identifier", "service_tier", "store", "verbosity"),
                "web_search_options",
            ),
            _ANYTHING,
        ),
    },
)
COMPLETIONS = Api(
    operation="text_completion",
    path="/completions",
    holds="choices",
    required="prompt",
    fields={
        "prompt": _prompts(MOST_CHOICES),
        "best_of": _integer(1, MOST_CHOICES),
        "echo": _BOOLEAN,
        "logprobs": _integer(0, 20),
        # 0 only reads the prompt, with its log-probabilities where `echo` asks for them.
        "max_tokens": _integer(0),
        "suffix": _TEXT,
        **_SAMPLING,
    },
)
EMBEDDINGS = Api(
    operation="embeddings",
    path="/embeddings",
    holds="data",
    required="input",
    fields={
        "input": _prompts(MOST_INPUTS),
        "dimensions": _integer(1),
        "encoding_format": _one_of("float", "base64"),
        "user": _TEXT,
    },
    streams=False,
    # Vectors of two models can't be compared.
    falls_back=False,
)
APIS = (CHAT, COMPLETIONS, EMBEDDINGS)
