"""The gateway as a Starlette application."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tuneline.serving.gateway.chat import ChatEndpoint, authenticate
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.metrics import CONTENT_TYPE
from tuneline.serving.gateway.protocol import ApiError
from tuneline.serving.gateway.runtime import Runtime

log = logging.getLogger("tuneline.gateway")


def create_app(config: GatewayConfig) -> Starlette:
    """Build the application; its `state.runtime` is the `Runtime`.

    Raises:
        UserError: see `Runtime`.
    """
    runtime = Runtime(config)
    since = int(time.time())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    async def models(request: Request) -> Response:
        authenticate(runtime, request)
        data = [
            {"id": model.id, "object": "model", "created": since, "owned_by": "tuneline"}
            for model in config.models
        ]
        return JSONResponse({"object": "list", "data": data})

    # The probes' bodies are those of NVIDIA NIM, so existing probes understand them.
    async def live(_: Request) -> Response:
        return JSONResponse(_health("Service is live", "live"))

    async def ready(_: Request) -> Response:
        reason = runtime.why_not_ready()
        body = _health(reason or "Service is ready", "not_ready" if reason else "ready")
        body["upstreams"] = runtime.prober.states()
        if reason is None:
            return JSONResponse(body)
        state = "draining" if runtime.draining else "not_ready"
        return JSONResponse(body, 503, headers={"x-tuneline-server-state": state})

    async def metrics(_: Request) -> Response:
        return Response(runtime.metrics.text(), headers={"content-type": CONTENT_TYPE})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatEndpoint(runtime), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/health/live", live),
            Route("/v1/health/ready", ready),
            Route("/metrics", metrics),
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


def _health(message: str, status: str) -> dict[str, object]:
    return {"object": "health.response", "message": message, "status": status}


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}.").response(error.headers)


async def _own_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback; the client gets no details.
    log.error("%s failed: %s", request.url.path, type(error).__name__)
    return ApiError(500, "The gateway failed.").response()
