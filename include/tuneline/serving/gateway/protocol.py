"""The OpenAI chat-completions protocol, as far as a gateway has to read it.

Requests are passed on unchanged except for the fields that route, count and judge. Errors have
OpenAI's shape, so that clients of that API can read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from tuneline.serving.adapter_fields import adapter_fields
from tuneline.serving.gateway import json_text
from tuneline.serving.gateway.config import UpstreamConfig

# Engine fields that choose an adapter, a cache slot or another server's memory. The gateway sets
# them; otherwise one tenant could ask for another's adapter.
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
NOT_FROM_CLIENTS = frozenset({"lora", "lora_request", "lora_path", "id_slot", "kv_transfer_params"})


class ApiError(Exception):
    """A request that ends with an error response.

    Args:
        status: HTTP status.
        message: one sentence for the client.
        kind: OpenAI's `type`; None takes the usual one of the status.
        code: OpenAI's `code`.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        usual = "server_error" if status >= 500 else "invalid_request_error"
        self.body = error_body(message, kind or _KINDS.get(status, usual), code)
        self.headers = dict(headers or {})

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the HTTP response, with more headers if given."""
        return Response(
            self.body,
            self.status,
            media_type="application/json",
            headers={**self.headers, **(headers or {})},
        )


def error_body(message: str, kind: str, code: str | None) -> bytes:
    """Return OpenAI's error object as JSON."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_text.dumps({"error": error})


@dataclass(frozen=True)
class Usage:
    """Token counts that an upstream reported."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class ChatRequest:
    """A checked request.

    Attributes:
        body: the client's body, without the fields that the gateway sets.
        size: bytes of the body as it came.
    """

    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    wants_logprobs: bool
    size: int = 0


def parse_chat(raw: bytes) -> ChatRequest:
    """Read a request body.

    Raises:
        ApiError: 400, naming the field that is wrong.
    """
    try:
        body = json_text.loads(raw)
    except ValueError:
        raise ApiError(400, "The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    model, messages, stream = body.get("model"), body.get("messages"), body.get("stream")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "`model` must be the id of a model; GET /v1/models lists them.")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "`messages` must be a list with at least one message.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"`messages[{number}]` must be an object with a `role`.")
    if stream is not None and not isinstance(stream, bool):
        raise ApiError(400, "`stream` must be true or false.")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "`stream_options` must be an object.")
    return ChatRequest(
        model=model,
        body={name: value for name, value in body.items() if name not in NOT_FROM_CLIENTS},
        size=len(raw),
        stream=bool(stream),
        wants_usage=options.get("include_usage") is True,
        wants_logprobs=body.get("logprobs") is True,
    )


def upstream_body(request: ChatRequest, upstream: UpstreamConfig, *, judged: bool) -> bytes:
    """Return the request as an upstream gets it.

    Args:
        request: the client's request.
        upstream: the upstream's section of the configuration.
        judged: True if the answer's confidence will be judged.
    """
    body = {**request.body, **upstream.extra_body, "model": upstream.model}
    body |= adapter_fields(upstream.adapter)
    if request.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)
    if judged and not request.wants_logprobs:
        # One alternative per token: without the field llama.cpp sends twenty, with 0 none.
        body |= {"logprobs": True, "top_logprobs": 1}
    return json_text.dumps(body)


def reported_usage(payload: Mapping[str, Any]) -> Usage | None:
    """Return the usage of a whole answer or a stream's usage chunk, None if not reported."""
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, completion, cached if isinstance(cached, int) else 0)


def written_text(message: Any) -> str:
    """Return the text of a message or delta: reasoning, content, refusal, tool calls."""
    if not isinstance(message, dict):
        return ""
    parts = [message.get(name) for name in ("reasoning_content", "content", "refusal")]
    for call in message.get("tool_calls") or []:
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
