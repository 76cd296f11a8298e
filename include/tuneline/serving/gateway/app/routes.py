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

from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tuneline.serving.gateway.app.completions import ChatEndpoint, authenticate
from tuneline.serving.gateway.app.runtime import Runtime, ScrubberFor
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.request import APIS, ApiError, unknown_model

log = logging.getLogger("tuneline.gateway")


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


@cache
def document() -> bytes:
    """Return the OpenAPI document (version 3.1) as JSON; bodies of requests are those we take."""
    whole = json.loads(files(__package__).joinpath("openapi.json").read_text("utf-8"))
    _, bodies = models_json_schema(
        [(api.body, "validation") for api in APIS], ref_template="#/components/schemas/{model}"
    )
    whole["components"]["schemas"] |= bodies["$defs"]
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
        stated = ("version", "weights_sha256", "system", "defaults")
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
