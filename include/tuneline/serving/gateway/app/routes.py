"""The gateway as a Starlette application."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tuneline.serving.gateway.app.completions import ChatEndpoint, authenticate
from tuneline.serving.gateway.app.runtime import Runtime, ScrubberFor
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.request import APIS, CHAT, COMPLETIONS, Api, ApiError, unknown_model

log = logging.getLogger("tuneline.gateway")

_ABOUT = {
    CHAT.path: "The answer of a model to a conversation, whole or as server-sent events.",
    COMPLETIONS.path: "How a model goes on from a text, whole or as server-sent events.",
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


@cache
def _chat_page() -> Response:
    """Return the page, which may run its own script and style alone, and talk to us alone."""
    text = files(__package__).joinpath("page.html").read_text("utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_hash_of('script', text)}",
        f"style-src {_hash_of('style', text)}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "content-security-policy": "; ".join(policy),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(text, media_type="text/html", headers=headers)


def _hash_of(tag: str, text: str) -> str:
    """Return the hash of the one inline element with a tag, as a CSP source."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> dict[str, Any]:
    text, texts = {"type": "string"}, {"type": ["string", "null"]}
    objects = {"type": "array", "items": {"type": "object"}}
    # The last two are the primary's; null where its upstream states none.
    entry: dict[str, Any] = {"object": {"const": "model"}, "created": {"type": "integer"}}
    entry |= {"owned_by": text, "version": texts, "weights_sha256": texts}
    _, bodies = models_json_schema(
        [(api.body, "validation") for api in APIS], ref_template="#/components/schemas/{model}"
    )
    return bodies["$defs"] | {
        "Error": _object(error=_object(message=text, type=text, param=texts, code=texts)),
        "Answer": _object(choices=objects),
        "Model": _object(id=text, **entry),
        "ModelList": _object(
            object={"const": "list"}, data={"type": "array", "items": _ref("Model")}
        ),
        "Health": _object(object=text, message=text, status=text),
    }


def _operation(
    summary: str, content: dict[str, Any], *faults: int, key: bool = True
) -> dict[str, Any]:
    answers = {"200": {"description": summary, "content": _media(content)}}
    for status in faults:
        answers[str(status)] = {
            "description": _FAULTS[status],
            "content": _media({"application/json": _ref("Error")}),
        }
    return {"summary": summary, "security": [{"key": []}] if key else [], "responses": answers}


def _media(content: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in content.items()}


def _asking(api: Api) -> dict[str, Any]:
    # Events whose data is a JSON object, until one with `[DONE]`.
    stream = _object(data={"type": "string"})
    content = {"application/json": _ref("Answer"), "text/event-stream": stream}
    operation = _operation(_ABOUT[api.path], content, *_FAULTS)
    operation["responses"]["200"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    body = _media({"application/json": _ref(api.body.__name__)})
    return operation | {"requestBody": {"required": True, "content": body}}


@cache
def document() -> bytes:
    """Return the OpenAPI document (version 3.1) as JSON."""
    text, health = {"type": "string"}, {"application/json": _ref("Health")}
    ready = _operation("Whether every model can be answered.", health, key=False)
    ready["responses"]["503"] = {
        "description": "It can't; `message` says why.",
        "content": _media(health),
    }
    model = _operation("A model.", {"application/json": _ref("Model")}, 401, 404)
    model["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {**text, "minLength": 1}}
    ]
    models = {"application/json": _ref("ModelList")}
    answers = {
        "/v1/models": _operation("The models that can be asked for.", models, 401),
        "/v1/models/{model}": model,
        "/v1/health/live": _operation("Whether the process runs.", health, key=False),
        "/v1/health/ready": ready,
        "/metrics": _operation("Counters of Prometheus.", {"text/plain": text}, key=False),
        "/": _operation("A page to chat on.", {"text/html": text}, key=False),
        "/openapi.json": _operation(
            "This document.", {"application/json": {"type": "object"}}, key=False
        ),
    }
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tuneline gateway",
            "version": "1",
            "description": "OpenAI's API in front of the engines of released models.",
        },
        "paths": {path: {"get": operation} for path, operation in answers.items()}
        | {f"/v1{api.path}": {"post": _asking(api)} for api in APIS},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def create_app(config: GatewayConfig, scrubber_for: ScrubberFor | None = None) -> Starlette:
    """Build the application; its `state.runtime` is the `Runtime`.

    Raises:
        UserError: see `Runtime`.
    """
    runtime = Runtime(config, scrubber_for)
    answers = _Answers(runtime)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    app = Starlette(
        routes=[
            *(
                Route(f"/v1{api.path}", ChatEndpoint(runtime, api), methods=["POST"])
                for api in APIS
            ),
            Route("/v1/models", answers.models),
            Route("/v1/models/{model:path}", answers.model),
            Route("/v1/health/live", answers.live),
            Route("/v1/health/ready", answers.ready),
            Route("/metrics", answers.metrics),
            Route("/openapi.json", answers.openapi),
            *([Route("/", answers.page)] if config.chat_page else []),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _own_error,
        },
        lifespan=lifespan,
    )
    app.state.runtime = runtime
    return app


class _Answers:
    """The endpoints that ask no engine. Probes answer as NVIDIA NIM does, for existing probes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._entry = {"object": "model", "created": int(time.time()), "owned_by": "tuneline"}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(self._allowed(request).values())})

    async def model(self, request: Request) -> Response:
        entry = self._allowed(request).get(request.path_params["model"])
        if entry is None:
            raise unknown_model()
        return JSONResponse(entry)

    def _allowed(self, request: Request) -> dict[str, dict[str, object]]:
        grant = self._runtime.keys.grant_of(authenticate(self._runtime, request))
        stated = ("version", "weights_sha256")
        return {
            asked: {"id": asked, **self._entry}
            | {name: getattr(chain.upstreams[0].config, name) for name in stated}
            for asked, chain in self._runtime.chains.items()
            if grant and grant.allows(chain.config.id)
        }

    async def live(self, _: Request) -> Response:
        return JSONResponse(_health("Service is live", "live"))

    async def ready(self, _: Request) -> Response:
        reason = self._runtime.why_not_ready()
        body = _health(reason or "Service is ready", "not_ready" if reason else "ready")
        body["upstreams"] = self._runtime.prober.states()
        body["circuits"] = self._runtime.prober.circuits()
        body["behind"] = self._runtime.behind()
        body["canary"] = self._runtime.tally.read()
        body["reload"] = asdict(self._runtime.reload)
        if reason is None:
            return JSONResponse(body)
        state = "draining" if self._runtime.draining else "not_ready"
        return JSONResponse(body, 503, headers={"x-tuneline-server-state": state})

    async def metrics(self, request: Request) -> Response:
        page, media_type = self._runtime.metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": media_type})

    async def openapi(self, _: Request) -> Response:
        return Response(document(), media_type="application/json")

    async def page(self, _: Request) -> Response:
        return _chat_page()


def _health(message: str, status: str) -> dict[str, object]:
    return {"object": "health.response", "message": message, "status": status}


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path == "/v1/embeddings":
        why = "Embeddings are not offered: a released model writes texts. Ask an engine for them."
        return ApiError(400, why, code="embeddings_not_offered").response()
    return ApiError(error.status_code, f"{error.detail}.").response(error.headers)


async def _own_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback; the client gets no details.
    log.error("%s failed: %s", request.url.path, type(error).__name__)
    return ApiError(500, "The gateway failed.").response()
