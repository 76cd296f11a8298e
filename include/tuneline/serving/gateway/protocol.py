"""OpenAI's protocol, as far as a gateway has to read it.

Requests are passed on unchanged except for the fields that route, count and judge, and for those
that an upstream does not take. Errors have OpenAI's shape, so that clients of that API can read
them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from starlette.responses import Response

from tuneline.serving.gateway import json_text
from tuneline.serving.gateway.api import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODEL,
    MOST_CHOICES,
    Api,
    Field,
)
from tuneline.serving.gateway.upstream_config import UpstreamConfig
from tuneline.serving.protocol import adapter_fields

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
_WRITTEN = ("content", "refusal", "text")
# More than any request has; a ledger holds no number beyond 2**63, and a negative one would give a
# budget back.
_MOST_TOKENS = 2**53
# What a value takes in memory besides its text: the object, and its place in another one.
_BYTES_PER_VALUE = 100
_SHOWN_NAME = 64


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
    return json_text.dumps({"error": error})


@dataclass(frozen=True)
class Usage:
    """Token counts that an upstream reported."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


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


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str)


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
        body = json_text.loads(raw)
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
    return json_text.dumps(body)


def reported_usage(payload: Mapping[str, Any]) -> Usage | None:
    """Return the usage of a whole answer or a stream's usage chunk.

    Returns:
        None if it is not reported, or not by whole numbers from 0 to 2^53.
    """
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    # Embeddings have no completion.
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not _is_count(prompt) or not _is_count(completion):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if _is_count(cached) else 0)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def written_text(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice: reasoning, content, refusal, tool calls, or a plain text."""
    message = choice.get("message") or choice.get("delta") or choice
    if not isinstance(message, dict):
        return ""
    # Some engines send their reasoning under both names.
    parts = [message.get("reasoning_content") or message.get("reasoning")]
    parts += [message.get(name) for name in _WRITTEN]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            parts += [function.get("name"), function.get("arguments")]
    return "".join(part for part in parts if isinstance(part, str))


def choices_of(payload: Any) -> list[dict[str, Any]]:
    """Return the choices of an answer or chunk; empty if there are none."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    return [choice for choice in choices or [] if isinstance(choice, dict)]


def without_logprobs(payload: dict[str, Any]) -> bytes:
    """Return the answer or chunk as JSON, without its log-probabilities."""
    for choice in choices_of(payload):
        choice.pop("logprobs", None)
    return json_text.dumps(payload)
