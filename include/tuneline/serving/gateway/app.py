"""The gateway as a Starlette application."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tuneline.serving.gateway.api import APIS
from tuneline.serving.gateway.chat import ChatEndpoint, authenticate
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.openapi import document
from tuneline.serving.gateway.page import ChatPage
from tuneline.serving.gateway.protocol import ApiError, unknown_model
from tuneline.serving.gateway.runtime import Runtime, ScrubberFor

log = logging.getLogger("tuneline.gateway")


def create_app(config: GatewayConfig, scrubber_for: ScrubberFor | None = None) -> Starlette:
    """Build the application; its `state.runtime` is the `Runtime`.

    Args:
        config: the configuration.
        scrubber_for: see `Runtime`.

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
        self._page = ChatPage()

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(self._allowed(request).values())})

    async def model(self, request: Request) -> Response:
        entry = self._allowed(request).get(request.path_params["model"])
        if entry is None:
            raise unknown_model()
        return JSONResponse(entry)

    def _allowed(self, request: Request) -> dict[str, dict[str, object]]:
        """Return the models that the key of a request may ask for, by id."""
        grant = self._runtime.keys.grant_of(authenticate(self._runtime, request))
        return {
            asked: {"id": asked, **self._entry}
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
        return self._page.response()


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
