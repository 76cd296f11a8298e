"""One upstream: requests, answers, and the faults of either side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tuneline.serving.gateway import json_text
from tuneline.serving.gateway.api import CHAT, Api
from tuneline.serving.gateway.breaker import Breaker
from tuneline.serving.gateway.health import UpstreamHealth
from tuneline.serving.gateway.http_answer import AnswerTooLarge, BrokenConnection, HttpAnswer
from tuneline.serving.gateway.http_client import CannotConnect, HttpClient
from tuneline.serving.gateway.outcome import ClientFault, Outcome, UpstreamFault
from tuneline.serving.gateway.prices import Rates
from tuneline.serving.gateway.tokens import TokenCounter
from tuneline.serving.gateway.upstream_config import UpstreamConfig

# Shorter than the 5 s after which uvicorn and llama.cpp close an idle connection:
# a request on a connection that is being closed would look like a dead engine.
_KEEPALIVE_S = 3.0
Headers: TypeAlias = Mapping[str, str]
_NO_HEADERS: Headers = {}
# How an engine answers that does not have an API: there is no such path, or it says so.
_NOT_OFFERED = frozenset({404, 405, 501})
_FREE = Rates(0.0, 0.0)


class Upstream:
    """One OpenAI-compatible server.

    Args:
        config: its section of the configuration.

    Raises:
        UserError: if its tokenizer file cannot be read.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        self.config = config
        self.name = config.name
        self.rates = config.price.rates() if config.price else _FREE
        self.counter = TokenCounter(config.tokenizer)
        self.health = UpstreamHealth()
        self.breaker = Breaker(config.breaker)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if config.api_key_env:
            headers["authorization"] = f"Bearer {os.environ[config.api_key_env]}"
        self._client = HttpClient(
            config.base_url,
            headers,
            connect_timeout_s=config.connect_timeout_s,
            keepalive_s=_KEEPALIVE_S,
            proxy=_proxy_for(config),
        )
        self._path = urlsplit(config.base_url).path

    async def complete(
        self, body: bytes, timeout_s: float, api: Api = CHAT, headers: Headers = _NO_HEADERS
    ) -> tuple[dict[str, Any], bytes]:
        """Ask for a whole answer.

        Args:
            body: the request.
            timeout_s: time for the answer, in seconds.
            api: the API to ask by.
            headers: headers beside the usual ones.

        Returns:
            The answer, parsed and as it came.

        Raises:
            UpstreamFault: if there is no usable answer.
            ClientFault: if the request itself is wrong.
        """
        async with _within(timeout_s, "no answer"):
            response = await self._client.send("POST", self._path + api.path, body, headers)
            content = await response.read(self.config.max_answer_bytes)
        if not api.falls_back and response.status in _NOT_OFFERED:
            raise ClientFault(HTTPStatus.BAD_REQUEST, _not_offered(api))
        _check_status(response.status, content)
        payload = _json(content)
        if not isinstance(payload, dict) or not isinstance(payload.get(api.holds), list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, f"the answer has no list `{api.holds}`")
        return payload, content

    async def open_stream(
        self, body: bytes, timeout_s: float, api: Api = CHAT, headers: Headers = _NO_HEADERS
    ) -> HttpAnswer:
        """Ask for a stream; the response is open and must be closed by the caller.

        Args:
            body: the request.
            timeout_s: time for the head of the response, in seconds.
            api: the API to ask by.
            headers: headers beside the usual ones.

        Raises:
            UpstreamFault: if no stream began.
            ClientFault: if the request itself is wrong.
        """
        async with _within(timeout_s, "no stream"):
            response = await self._client.send("POST", self._path + api.path, body, headers)
            ok = response.status == HTTPStatus.OK
            content = b"" if ok else await response.read(self.config.max_answer_bytes)
        _check_status(response.status, content)
        return response

    async def listed_models(self, timeout_s: float) -> list[str]:
        """Return the ids of the models that it lists.

        Raises:
            UpstreamFault: if it gives no list.
        """
        payload = await self._list(self._path + "/models", timeout_s)
        entries = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(entries, list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "its list of models cannot be read")
        return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]

    async def loaded_adapters(self, timeout_s: float) -> list[int]:
        """Return the places of the adapters that a llama.cpp server has loaded.

        Raises:
            UpstreamFault: if it gives no list.
        """
        root = self._path.removesuffix("/v1")
        entries = await self._list(root + "/lora-adapters", timeout_s)
        if not isinstance(entries, list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "its list of adapters cannot be read")
        return [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]

    async def _list(self, path: str, timeout_s: float) -> Any:
        async with _within(timeout_s, "no list"):
            response = await self._client.send("GET", path)
            content = await response.read(self.config.max_answer_bytes)
        try:
            _check_status(response.status, content)
        except ClientFault as fault:
            raise UpstreamFault(Outcome.UPSTREAM_REFUSED, str(fault), fault.status) from None
        return _json(content)

    async def aclose(self) -> None:
        """Close its idle connections."""
        self._client.close()


@asynccontextmanager
async def _within(seconds: float, missing: str) -> AsyncIterator[None]:
    """Turn a missed deadline or a broken connection into an upstream's fault."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except CannotConnect:
        raise UpstreamFault(Outcome.CONNECT_ERROR, "cannot connect") from None
    except AnswerTooLarge as large:
        detail = f"the answer is too large: {large} (`max_answer_bytes`)"
        raise UpstreamFault(Outcome.BAD_RESPONSE, detail) from None
    except BrokenConnection as broken:
        raise UpstreamFault(Outcome.CONNECTION_LOST, f"connection broken ({broken})") from None
    except TimeoutError:
        raise UpstreamFault(Outcome.TIMEOUT, f"{missing} within {seconds:g} s") from None


def _not_offered(api: Api) -> dict[str, object]:
    return {
        "message": f"This model has no {api.operation}: its engine does not offer them.",
        "type": "invalid_request_error",
        "code": f"{api.operation}_not_offered",
    }


def _proxy_for(config: UpstreamConfig) -> str | None:
    """Return the proxy that the environment names for a server, None for the engine next door."""
    if config.is_local or proxy_bypass(config.host):
        return None
    proxies = getproxies()
    return proxies.get(urlsplit(config.base_url).scheme) or proxies.get("all")


def _json(content: bytes) -> Any:
    try:
        return json_text.loads(content)
    except ValueError:
        return None


def _check_status(status: int, content: bytes) -> None:
    if status == HTTPStatus.OK:
        return
    detail = f"HTTP {status}"
    if status >= 500:
        raise UpstreamFault(Outcome.UPSTREAM_5XX, detail, status)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise UpstreamFault(Outcome.UPSTREAM_BUSY, detail, status)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        raise UpstreamFault(Outcome.TIMEOUT, detail, status)
    if status < 400 or status in (401, 403, 404, 405):
        raise UpstreamFault(Outcome.UPSTREAM_REFUSED, detail, status)
    payload = _json(content)
    # Some engines do not wrap the error.
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    if not isinstance(error, dict):
        error = {"message": "The model's server refused the request.", "type": "invalid_request"}
    raise ClientFault(status, error)
