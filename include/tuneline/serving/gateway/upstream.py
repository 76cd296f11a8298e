"""One upstream: requests, answers, and the faults of either side."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tuneline.serving.gateway.breaker import Breaker
from tuneline.serving.gateway.config import UpstreamConfig
from tuneline.serving.gateway.health import UpstreamHealth
from tuneline.serving.gateway.outcome import ClientFault, Outcome, UpstreamFault
from tuneline.serving.gateway.prices import Rates
from tuneline.serving.gateway.tokens import TokenCounter

# Shorter than the 5 s after which uvicorn and llama.cpp close an idle connection:
# a request on a connection that is being closed would look like a dead engine.
_KEEPALIVE_S = 3.0
_FREE = Rates(0.0, 0.0)
# How a connection ends under a request that was written to it.
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class _Trace:
    """Notes whether a request opened a new connection; httpcore calls it at each event."""

    connected = False

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self.connected = True


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

        def client(kept: int | None) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                headers=headers,
                # Every wait after connecting has a deadline where it is awaited.
                timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=kept,
                    keepalive_expiry=_KEEPALIVE_S,
                ),
                # A proxy from the environment is for the outside, not for the engine next door.
                trust_env=not config.is_local,
            )

        self._client = client(None)
        self._unkept = client(0)
        self._chat_url = config.base_url + "/chat/completions"

    async def complete(self, body: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Ask for a whole answer.

        Returns:
            The answer, parsed and as it came.

        Raises:
            UpstreamFault: if there is no usable answer.
            ClientFault: if the request itself is wrong.
        """
        async with _within(timeout_s, "no answer"):
            response = await self._send("POST", self._chat_url, body)
            await _read(response)
        _check_status(response)
        payload = _json(response.content)
        if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "the answer is no chat completion")
        return payload, response.content

    async def open_stream(self, body: bytes, timeout_s: float) -> httpx.Response:
        """Ask for a stream; the response is open and must be closed by the caller.

        Raises:
            UpstreamFault: if no stream began.
            ClientFault: if the request itself is wrong.
        """
        async with _within(timeout_s, "no stream"):
            response = await self._send("POST", self._chat_url, body)
            if response.status_code != httpx.codes.OK:
                await _read(response)
        _check_status(response)
        return response

    async def listed_models(self, timeout_s: float) -> list[str]:
        """Return the ids of the models that it lists.

        Raises:
            UpstreamFault: if it gives no list.
        """
        payload = await self._list(self.config.base_url + "/models", timeout_s)
        entries = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(entries, list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "its list of models cannot be read")
        return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]

    async def loaded_adapters(self, timeout_s: float) -> list[int]:
        """Return the places of the adapters that a llama.cpp server has loaded.

        Raises:
            UpstreamFault: if it gives no list.
        """
        root = self.config.base_url.removesuffix("/v1")
        entries = await self._list(root + "/lora-adapters", timeout_s)
        if not isinstance(entries, list):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "its list of adapters cannot be read")
        return [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]

    async def _list(self, url: str, timeout_s: float) -> Any:
        async with _within(timeout_s, "no list"):
            response = await self._send("GET", url)
            await _read(response)
        try:
            _check_status(response)
        except ClientFault as fault:
            raise UpstreamFault(Outcome.UPSTREAM_REFUSED, str(fault), fault.status) from None
        return _json(response.content)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()
        await self._unkept.aclose()

    async def _send(self, method: str, url: str, body: bytes | None = None) -> httpx.Response:
        """Send a request; the response's body is still to be read.

        A server may close a kept connection just when a request is written to it: llama.cpp's
        does so after some hundred requests, without announcing it. If not a byte of an answer
        came, the request is sent once more, on a new connection; a request that breaks on a
        new connection is the server's fault and is not tried again.
        """
        trace = _Trace()
        request = self._client.build_request(method, url, content=body, extensions={"trace": trace})
        try:
            return await self._client.send(request, stream=True)
        except _BROKEN:
            if trace.connected:
                raise
        again = self._unkept.build_request(method, url, content=body)
        return await self._unkept.send(again, stream=True)


@asynccontextmanager
async def _within(seconds: float, missing: str) -> AsyncIterator[None]:
    """Turn a missed deadline or a broken connection into an upstream's fault."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise UpstreamFault(Outcome.TIMEOUT, f"{missing} within {seconds:g} s") from None
    except httpx.HTTPError as error:
        raise _transport_fault(error) from None


async def _read(response: httpx.Response) -> None:
    try:
        await response.aread()
    finally:
        await response.aclose()


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _transport_fault(error: httpx.HTTPError) -> UpstreamFault:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UpstreamFault(Outcome.CONNECT_ERROR, "cannot connect")
    return UpstreamFault(Outcome.CONNECTION_LOST, f"connection broken ({type(error).__name__})")


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == httpx.codes.OK:
        return
    detail = f"HTTP {status}"
    if status >= 500:
        raise UpstreamFault(Outcome.UPSTREAM_5XX, detail, status)
    if status == httpx.codes.TOO_MANY_REQUESTS:
        raise UpstreamFault(Outcome.UPSTREAM_BUSY, detail, status)
    if status == httpx.codes.REQUEST_TIMEOUT:
        raise UpstreamFault(Outcome.TIMEOUT, detail, status)
    if status < 400 or status in (401, 403, 404, 405):
        raise UpstreamFault(Outcome.UPSTREAM_REFUSED, detail, status)
    payload = _json(response.content)
    # Some engines do not wrap the error.
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    if not isinstance(error, dict):
        error = {"message": "The model's server refused the request.", "type": "invalid_request"}
    raise ClientFault(status, error)
