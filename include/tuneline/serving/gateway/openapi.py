"""The OpenAPI document of the gateway, made of the same tables that requests are checked by."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tuneline.serving.gateway.api import APIS, CHAT, COMPLETIONS, EMBEDDINGS, MODEL, Api

_ABOUT = {
    CHAT: "The answer of a model to a conversation, whole or as server-sent events.",
    COMPLETIONS: "How a model goes on from a text, whole or as server-sent events.",
    EMBEDDINGS: "The vectors of texts, where the model's engine has them.",
}
_FAULTS = {
    400: "The request is wrong; the message names the field.",
    401: "There is no valid key.",
    403: "The key has no right to that model.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    429: "Too much is asked for at once, or by this key; Retry-After says when to try again.",
    500: "The gateway failed.",
    502: "No engine could answer.",
    503: "No engine has a free place, or the gateway shuts down.",
    504: "No engine answered in time.",
}
_HEADERS = {
    "x-request-id": "The id of the request in ledger and log.",
    "x-tuneline-served-by": "The upstream that answered.",
    "x-tuneline-fallback-reason": "Why the upstream before it was left, if one was.",
    "x-tuneline-attempts": "Every attempt and its end.",
    "x-tuneline-skipped": "The upstreams that were passed over, and why.",
}
_KEY: list[dict[str, list[str]]] = [{"key": []}]


@cache
def document() -> bytes:
    """Return the OpenAPI document (version 3.1) as JSON."""
    paths: dict[str, Any] = {f"/v1{api.path}": {"post": _operation(api)} for api in APIS}
    paths |= {
        "/v1/models": {"get": _get("The models that can be asked for.", "ModelList", [401])},
        "/v1/models/{model}": {
            "get": _get("A model.", "Model", [401, 404])
            | {
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "minLength": 1},
                    }
                ]
            }
        },
        "/v1/health/live": {"get": _get("Whether the process runs.", "Health", [], key=False)},
        "/v1/health/ready": {"get": _readiness()},
        "/metrics": {"get": _text("Counters in Prometheus' text format.", "text/plain")},
        "/": {"get": _text("A page to chat on.", "text/html")},
        "/openapi.json": {
            "get": _get("This document.", None, [], key=False),
        },
    }
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tuneline gateway",
            "version": "1",
            "description": "OpenAI's API in front of the engines of released models.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def _operation(api: Api) -> dict[str, Any]:
    """Return the entry of an API that asks an engine."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(_answer_of(api))}}
    if api.streams:
        # Events whose data is a JSON object, until one with `[DONE]`.
        event = _object(["data"], data={"type": "string"})
        content["text/event-stream"] = {"schema": event}
    headers = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    return {
        "summary": _ABOUT[api],
        "security": _KEY,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _request_schema(api)}},
        },
        "responses": {
            "200": {"description": "The answer.", "headers": headers, "content": content},
            **_faults(*_FAULTS),
        },
    }


def _request_schema(api: Api) -> dict[str, Any]:
    fields = {name: field.schema for name, field in sorted(api.fields.items())}
    optional = {
        name: {"anyOf": [schema, {"type": "null"}]}
        for name, schema in fields.items()
        if name != api.required
    }
    return {
        "type": "object",
        "required": ["model", api.required],
        "properties": {"model": MODEL.schema, api.required: fields[api.required], **optional},
        "additionalProperties": False,
        "description": "The gateway's owner may let more fields pass (`upstreams[].fields`).",
    }


def _answer_of(api: Api) -> str:
    return "Embeddings" if api is EMBEDDINGS else "Answer"


def _get(text: str, schema: str | None, faults: list[int], *, key: bool = True) -> dict[str, Any]:
    content = {"schema": _ref(schema) if schema else {"type": "object"}}
    return {
        "summary": text,
        "security": _KEY if key else [],
        "responses": {
            "200": {"description": text, "content": {"application/json": content}},
            **_faults(*faults),
        },
    }


def _readiness() -> dict[str, Any]:
    entry = _get("Whether every model can be answered.", "Health", [], key=False)
    entry["responses"]["503"] = {
        "description": "It can't; `message` says why.",
        "content": {"application/json": {"schema": _ref("Health")}},
    }
    return entry


def _text(text: str, media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}}}
    return {
        "summary": text,
        "security": [],
        "responses": {"200": {"description": text, "content": content}},
    }


def _faults(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {
        str(status): {"description": _FAULTS[status], "content": content} for status in statuses
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _schemas() -> dict[str, Any]:
    text, texts = {"type": "string"}, {"type": ["string", "null"]}
    choices = {"type": "array", "items": {"type": "object"}}
    error = _object(
        ["message", "type", "param", "code"], message=text, type=text, param=texts, code=texts
    )
    return {
        "Error": _object(["error"], error=error),
        "Answer": _object(["choices"], choices=choices, usage={"type": "object"}),
        "Embeddings": _object(["data"], data=choices, usage={"type": "object"}),
        "Model": _object(
            ["id", "object", "created", "owned_by"],
            id=text,
            object={"const": "model"},
            created={"type": "integer"},
            owned_by=text,
        ),
        "ModelList": _object(
            ["object", "data"],
            object={"const": "list"},
            data={"type": "array", "items": _ref("Model")},
        ),
        "Health": _object(["object", "message", "status"], object=text, message=text, status=text),
    }
