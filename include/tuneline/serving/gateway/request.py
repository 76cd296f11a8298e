"""OpenAI's protocol, as far as a gateway has to read it.

Requests are passed on unchanged except for the fields that route, count and judge, and for those
that an upstream does not take. Errors have OpenAI's shape, so that clients of that API can read
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.responses import Response

from tuneline.serving.gateway.protocol import dump_json, load_json
from tuneline.serving.gateway.upstream_config import UpstreamConfig
from tuneline.serving.protocol import adapter_fields

# More choices than this, over all prompts of a request, are a mistake, or an attack on the budget
# of a key.
MOST_CHOICES = 128
# OpenAI's own limit.
MOST_INPUTS = 2_048
_INTEGER = {"type": "integer"}
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
# What a value takes in memory besides its text: the object, and its place in another one.
_BYTES_PER_VALUE = 100
_SHOWN_NAME = 64


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


class ApiError(Exception):
    """A request that ends with an error response.

    Args:
        status: HTTP status.
        message: one sentence for the client.
        kind: OpenAI's `type`; None takes the usual one of the status.
        code: OpenAI's `code`.
        param: OpenAI's `param`, the field that is wrong.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        usual = "server_error" if status >= 500 else "invalid_request_error"
        self.body = error_body(message, kind or _KINDS.get(status, usual), code, param)
        self.headers = dict(headers or {})

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the HTTP response, with more headers if given."""
        return Response(
            self.body,
            self.status,
            media_type="application/json",
            headers={**self.headers, **(headers or {})},
        )


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """Return OpenAI's error object as JSON."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return dump_json({"error": error})


@dataclass(frozen=True)
class ApiRequest:
    """A checked request.

    Attributes:
        body: the client's body.
        api: the API that it came by.
        size: bytes of the body as it came.
        memory: bytes of memory that it holds while it is under way, or a little less.
    """

    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    wants_logprobs: bool
    api: Api = CHAT
    size: int = 0
    memory: int = 0

    @property
    def messages(self) -> list[Any]:
        """The prompt as messages; each text of another API than chat is a user's."""
        if self.api is CHAT:
            return list(self.body["messages"])
        return [{"role": "user", "content": text} for text in self.prompts if _is_text(text)]

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts and lists of token ids; a conversation is one."""
        if self.api is CHAT:
            return [None]
        given = self.body[self.api.required]
        if isinstance(given, str) or isinstance(given[0], int | float):
            return [given]
        return list(given)

    @property
    def choices(self) -> int:
        """The number of choices that a whole answer has."""
        return int(self.body.get("n") or 1) * len(self.prompts)

    @property
    def sequences(self) -> int:
        """The number of sequences that an engine writes, of which `best_of` drops some."""
        best_of = int(self.body.get("best_of") or 1) if self.api is COMPLETIONS else 1
        return max(self.choices, best_of * len(self.prompts))

    @property
    def more_fields(self) -> set[str]:
        """The fields that are not of OpenAI's API."""
        return self.body.keys() - self.api.fields.keys() - {"model"}


def unknown_model() -> ApiError:
    """Return the error of a model that is not served."""
    return ApiError(
        404,
        "That model does not exist here; GET /v1/models lists those that do.",
        code="model_not_found",
        param="model",
    )


def check_content_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is declared to be something else than JSON, or compressed.

    Raises:
        ApiError: 415.
    """
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "The body must be JSON, sent with `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "The body must be sent uncompressed, without Content-Encoding.")


def parse_request(api: Api, raw: bytes, *, max_depth: int, max_values: int) -> ApiRequest:
    """Read a request body.

    Args:
        api: the API that it came by.
        raw: the body.
        max_depth: how deep its lists and objects may be nested.
        max_values: how many lists, objects and fields it may have.

    Raises:
        ApiError: 400, naming the field that is wrong.
    """
    try:
        body = load_json(raw)
    except ValueError:
        raise ApiError(
            400, f"The request body is not valid JSON, or nested deeper than {max_depth} levels."
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    brackets = raw.count(b"[") + raw.count(b"{")
    # Few signs can't make many values, which spares most bodies the walk.
    if brackets > max_depth or brackets + raw.count(b":") > max_values:
        _check_shape(body, max_depth, max_values)
    _check_fields(api, body)
    options = body.get("stream_options") or {}
    logprobs = body.get("logprobs")
    # One character beyond ASCII makes a text four times as wide.
    width = 1 if raw.isascii() and b"\\u" not in raw else 4
    request = ApiRequest(
        model=body["model"],
        body=body,
        size=len(raw),
        # The values, and the body as it is sent.
        memory=len(raw) * (width + 1) + _BYTES_PER_VALUE * (brackets + raw.count(b",")),
        api=api,
        stream=api.streams and body.get("stream") is True,
        wants_usage=options.get("include_usage") is True,
        # A number in the older API, in which 0 asks for them too.
        wants_logprobs=logprobs is not None and logprobs is not False,
    )
    if api is not EMBEDDINGS and request.sequences > MOST_CHOICES:
        raise ApiError(
            400,
            f"`n` or `best_of` times the prompts must be at most {MOST_CHOICES}.",
            param="n",
        )
    return request


def refuse_more_fields(request: ApiRequest, taken: Collection[str]) -> None:
    """Refuse a request with a field that nobody takes, which may be meant for an engine.

    Args:
        request: the request.
        taken: the fields besides OpenAI's that some upstream takes.

    Raises:
        ApiError: 400, naming the field.
    """
    unknown = sorted(request.more_fields.difference(taken))
    if unknown:
        name = unknown[0] if len(unknown[0]) <= _SHOWN_NAME else f"{unknown[0][:_SHOWN_NAME]}…"
        raise ApiError(
            400,
            f"`{name}` is not a field of OpenAI's API, and no upstream of this model takes it; the "
            "gateway's owner can name it in `upstreams[].fields`.",
            param=name,
            code="unknown_field",
        )


def _check_fields(api: Api, body: dict[str, Any]) -> None:
    if not MODEL.accepts(body.get("model")):
        raise ApiError(400, f"`model` must be {MODEL.says}.", param="model")
    if body.get(api.required) is None:
        says = api.fields[api.required].says
        raise ApiError(400, f"`{api.required}` must be {says}.", param=api.required)
    for name, value in body.items():
        field = api.fields.get(name)
        if field is not None and value is not None and not field.accepts(value):
            raise _wrong_field(name, value, field)


def _wrong_field(name: str, value: Any, field: Field) -> ApiError:
    if name == "messages" and isinstance(value, list):
        for number, message in enumerate(value):
            place = f"messages[{number}]"
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                return ApiError(400, f"`{place}` must be an object with a `role`.", param=place)
            if not field.accepts([message]):
                says = "must be a string or a list of objects"
                return ApiError(400, f"`{place}.content` {says}.", param=f"{place}.content")
    return ApiError(400, f"`{name}` must be {field.says}.", param=name)


def _check_shape(body: Any, max_depth: int, max_values: int) -> None:
    """Refuse a body that is nested too deeply, or made of too many parts."""
    level, values = [body], 0
    for _ in range(max_depth):
        values += len(level) + sum(len(one) for one in level if type(one) is dict)
        if values > max_values:
            raise ApiError(
                400, f"The request body has more than {max_values} lists, objects and fields."
            )
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return
    raise ApiError(400, f"The request body is nested deeper than {max_depth} levels.")


def upstream_body(request: ApiRequest, upstream: UpstreamConfig, *, judged: bool) -> bytes:
    """Return the request as an upstream gets it.

    Args:
        request: the client's request.
        upstream: the upstream's section of the configuration.
        judged: True if the answer's confidence will be judged.
    """
    body = {**request.body, **upstream.extra_body, "model": upstream.model}
    for name in request.more_fields.difference(upstream.fields, upstream.extra_body):
        # Another upstream of the chain takes it.
        del body[name]
    body |= adapter_fields(upstream.adapter)
    if request.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)
    if judged and not request.wants_logprobs:
        # One alternative per token: without the field llama.cpp sends twenty, with 0 none.
        older = request.api is COMPLETIONS
        body |= {"logprobs": 1} if older else {"logprobs": True, "top_logprobs": 1}
    return dump_json(body)
