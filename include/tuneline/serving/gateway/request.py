"""Requests and errors of OpenAI's API, as far as a gateway has to read them.

Requests are passed on unchanged except for the fields that route, count and judge. What the bodies
below know is checked and published in the OpenAPI document; other fields reach an upstream only
where its configuration names them: engines have some that choose a server, a cache or code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from starlette.responses import Response
from typing_extensions import TypedDict

from tuneline.serving.gateway.json_text import dump_json, load_json
from tuneline.serving.gateway.upstream_config import UpstreamConfig
from tuneline.serving.protocol import adapter_fields

# More choices than this, over all prompts of a request, are a mistake, or an attack on the budget
# of a key.
MOST_CHOICES = 128
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
# What a value takes in memory besides its text: the object, and its place in another one.
_BYTES_PER_VALUE = 100
_SHOWN_NAME = 64
_SYSTEM_ROLES = ("system", "developer")

# Not `str`: JSON can state lone surrogates, which engines send when they cut a character.
Text = InstanceOf[str]
Object = InstanceOf[dict[str, Any]]
# Lists end at the first wrong item, however many a client sends.
Objects = Annotated[list[Object], Field(fail_fast=True)]
# 1e999 is read as infinity, which no JSON can state.
Number = Annotated[float, Field(allow_inf_nan=False)]
# JSON knows no difference between 1 and 1.0.
_WHOLE: dict[str, Any] = {
    "multiple_of": 1,
    "allow_inf_nan": False,
    "json_schema_extra": {"type": "integer"},
}
Integer = Annotated[float, Field(**_WHOLE)]
Count = Annotated[float, Field(ge=1, **_WHOLE)]
Choices = Annotated[float, Field(ge=1, le=MOST_CHOICES, **_WHOLE)]
Alternatives = Annotated[float, Field(ge=0, le=20, **_WHOLE)]
Tokens = Annotated[list[Integer], Field(min_length=1, fail_fast=True)]
Prompts = (
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
)


class Message(TypedDict):
    """A turn of a conversation; its other fields are the engine's."""

    role: Text
    content: NotRequired[Text | Objects | None]


def _described(must_be: str) -> Any:
    """Return an optional field, with its type in words as an error states it."""
    return Field(None, description=must_be)


class Body(BaseModel):
    """What every body has; a description is what an error states after "must be"."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "additionalProperties": False,
            "description": "The gateway's owner may let more fields pass (`upstreams[].fields`).",
        },
    )
    model: str = Field(min_length=1, description="the id of a model; GET /v1/models lists them")


class _Sampled(Body):
    frequency_penalty: Number | None = _described("a number")
    logit_bias: Object | None = _described("an object")
    n: Choices | None = _described(f"a whole number from 1 to {MOST_CHOICES}")
    presence_penalty: Number | None = _described("a number")
    seed: Integer | None = _described("a whole number")
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = _described(
        "a string or a list of strings"
    )
    stream: bool | None = _described("true or false")
    stream_options: Object | None = _described("an object")
    temperature: Number | None = _described("a number")
    top_p: Number | None = _described("a number")
    user: Text | None = _described("a string")


class ChatBody(_Sampled):
    """The body of a chat completion; fields of any type are passed on as they are."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] = Field(
        description="a list with at least one message"
    )
    logprobs: bool | None = _described("true or false")
    max_completion_tokens: Count | None = _described("a whole number of at least 1")
    max_tokens: Count | None = _described("a whole number of at least 1")
    metadata: Object | None = _described("an object")
    parallel_tool_calls: bool | None = _described("true or false")
    response_format: Object | None = _described("an object")
    tool_choice: Text | Object | None = _described("a string or an object")
    tools: Objects | None = _described("a list of objects")
    top_logprobs: Alternatives | None = _described("a whole number from 0 to 20")
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionsBody(_Sampled):
    """The body of a completion."""

    prompt: Prompts = Field(
        description=f"a string, a list of token ids, or a list of at most {MOST_CHOICES} of either"
    )
    best_of: None = _described("left out; `n` asks for several answers")
    echo: bool | None = _described("true or false")
    logprobs: Alternatives | None = _described("a whole number from 0 to 20")
    # 0 only reads the prompt, with its log-probabilities where `echo` asks for them.
    max_tokens: Annotated[float, Field(ge=0, **_WHOLE)] | None = _described(
        "a whole number of at least 0"
    )
    suffix: Text | None = _described("a string")


@dataclass(frozen=True, eq=False)
class Api:
    """One of OpenAI's APIs.

    Attributes:
        operation: its name in OpenTelemetry's GenAI conventions.
    """

    operation: str
    path: str
    body: type[Body]
    prompt: str


CHAT = Api("chat", "/chat/completions", ChatBody, "messages")
COMPLETIONS = Api("text_completion", "/completions", CompletionsBody, "prompt")
APIS = (CHAT, COMPLETIONS)


class ApiError(Exception):
    """A request that ends with an error response; kind, code and param are OpenAI's."""

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


def try_again(
    status: int, message: str, after_s: int, code: str, kind: str | None = None, **headers: str
) -> ApiError:
    """Return the error of a request that may succeed after some seconds."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    again = {"retry-after": str(after_s), **named}
    return ApiError(status, message, kind=kind, code=code, headers=again)


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """Return OpenAI's error object as JSON."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return dump_json({"error": error})


@dataclass(frozen=True)
class ApiRequest:
    """A checked request.

    Attributes:
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
        return [{"role": "user", "content": text} for text in self.prompts if isinstance(text, str)]

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts and lists of token ids; a conversation is one."""
        if self.api is CHAT:
            return [None]
        given = self.body[self.api.prompt]
        if isinstance(given, str) or isinstance(given[0], int | float):
            return [given]
        return list(given)

    @property
    def choices(self) -> int:
        """The number of choices that a whole answer has."""
        return int(self.body.get("n") or 1) * len(self.prompts)

    @property
    def more_fields(self) -> set[str]:
        """The fields that are not of OpenAI's API."""
        return self.body.keys() - self.api.body.model_fields.keys()


def unknown_model() -> ApiError:
    """Return the error of a model that is not served."""
    return ApiError(
        404,
        "That model does not exist here; GET /v1/models lists those that do.",
        code="model_not_found",
        param="model",
    )


def check_content_type(headers: Mapping[str, str]) -> None:
    """Refuse with 415 a body that is declared to be something else than JSON, or compressed."""
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "The body must be JSON, sent with `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "The body must be sent uncompressed, without Content-Encoding.")


def parse_request(api: Api, raw: bytes, *, max_depth: int, max_values: int) -> ApiRequest:
    """Read a request body.

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
    try:
        api.body.model_validate(body)
    except ValidationError as error:
        raise _wrong_field(api, error) from None
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
        stream=body.get("stream") is True,
        wants_usage=options.get("include_usage") is True,
        # A number in the older API, in which 0 asks for them too.
        wants_logprobs=logprobs is not None and logprobs is not False,
    )
    if request.choices > MOST_CHOICES:
        raise ApiError(400, f"`n` times the prompts must be at most {MOST_CHOICES}.", param="n")
    return request


def refuse_more_fields(request: ApiRequest, taken: Collection[str]) -> None:
    """Refuse a request with a field that no upstream takes, which may be meant for an engine.

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


def _wrong_field(api: Api, error: ValidationError) -> ApiError:
    """Return the error of the first field that is wrong, without its value."""
    name, *path = error.errors(include_url=False, include_context=False, include_input=False)[0][
        "loc"
    ]
    place, says = str(name), api.body.model_fields[str(name)].description
    if name == "messages" and path:
        place, says = f"messages[{path[0]}]", "an object with a `role`"
        if "content" in path:
            place, says = f"{place}.content", "a string or a list of objects"
    return ApiError(400, f"`{place}` must be {says}.", param=place)


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


def as_measured(request: ApiRequest, upstream: UpstreamConfig) -> ApiRequest:
    """Return the request that an upstream is asked, with what it was measured with.

    Fields that only others of the chain take are left out. What the request names stays.
    """
    foreign = request.more_fields.difference(upstream.fields)
    body = {name: value for name, value in request.body.items() if name not in foreign}
    chat = request.api is CHAT
    added = {
        name: value
        for name, value in upstream.defaults.items()
        if body.get(name) is None and (chat or name in request.api.body.model_fields)
    }
    if request.choices > len(request.prompts):
        # Several answers to one prompt are drawn; there is only one likeliest.
        added.pop("temperature", None)
    more = len(dump_json(added)) if added else 0
    turns = body["messages"] if chat else []
    if chat and upstream.system and all(turn["role"] not in _SYSTEM_ROLES for turn in turns):
        head = {"role": "system", "content": upstream.system}
        added["messages"] = [head, *turns]
        more += len(dump_json(head))
    return replace(
        request, body=body | added, size=request.size + more, memory=request.memory + more
    )


def upstream_body(request: ApiRequest, upstream: UpstreamConfig, *, judged: bool) -> bytes:
    """Return the body of a request `as_measured`, with log-probabilities if it will be judged."""
    body = {**request.body, **upstream.extra_body, "model": upstream.model}
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
