"""One upstream: its health and its circuit, requests and answers, and the faults of either side.

Closed, a circuit lets everything pass. Open, nothing, so that no request waits for a server that
is known to be broken. After a while it is half-open: one request at a time tries the upstream, and
its end closes or opens the circuit. The pattern is Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientHttpProxyError,
    ClientOSError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
    encode_basic_auth,
)
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from tuneline.errors import UserError
from tuneline.serving.gateway.attempt_status import AttemptStatus, ClientFault, UpstreamFault
from tuneline.serving.gateway.json_text import load_json
from tuneline.serving.gateway.request import CHAT, Api
from tuneline.serving.gateway.upstream_config import BreakerConfig, TokenRates, UpstreamConfig

_UNKNOWN = "not checked yet"
_FAILURES = frozenset(
    {
        AttemptStatus.CONNECT_ERROR,
        AttemptStatus.CONNECTION_LOST,
        AttemptStatus.TIMEOUT,
        AttemptStatus.UPSTREAM_5XX,
        AttemptStatus.UPSTREAM_REFUSED,
        AttemptStatus.BAD_RESPONSE,
        AttemptStatus.DIED_MIDSTREAM,
    }
)
# These say nothing about the upstream: the client or the time budget ended them, or it is busy,
# which it says at once and which passes by itself.
_NEITHER = frozenset(
    {AttemptStatus.CLIENT_ABORTED, AttemptStatus.BUDGET_SPENT, AttemptStatus.UPSTREAM_BUSY}
)
# Shorter than the 5 s after which uvicorn and llama.cpp close an idle connection:
# a request on a connection that is being closed would look like a dead engine.
# Hosted APIs send long Content-Security-Policy and Set-Cookie headers.
_LONGEST_HEADER = 65_536
_KEEPALIVE_S = 3.0
Headers: TypeAlias = Mapping[str, str]
_NO_HEADERS: Headers = {}
_FREE = TokenRates(0.0, 0.0)
# Byte-level BPE vocabularies average about four bytes of English text to a token.
_BYTES_PER_TOKEN = 4
# A chat template wraps a message in about four tokens (two markers, role, newline)
# and opens the answer with three; an estimate, and marked as one.
_PER_MESSAGE = 4
_PER_ANSWER = 3


@dataclass
class UpstreamHealth:
    """The last known state of an upstream; used in the event loop only.

    A refused connection or an error counts at once. A slow answer does not: a busy engine looks
    like one that hangs, until too long passes without a token.
    """

    listed: bool = False
    warm: bool = False
    # Whether pings carry the system turn of its prompts.
    keeps_prefix: bool = False
    error: str | None = _UNKNOWN
    last_proof: float | None = None
    # Set when a request met a fault, so that the next ping does not wait its turn.
    suspect: asyncio.Event = field(default_factory=asyncio.Event)

    def note_token(self) -> None:
        """Note a token."""
        self.last_proof = time.monotonic()
        self.error = None

    def failed(self, why: str) -> None:
        """Note that it cannot answer, beyond doubt."""
        self.error = why

    def restarted(self) -> None:
        """Note that nothing listens: the next server starts cold."""
        self.listed = self.warm = False

    def note_fault(self, outcome: AttemptStatus, detail: str) -> None:
        """Note a request that ended in a fault."""
        if outcome is AttemptStatus.CONNECT_ERROR:
            self.failed(detail)
            self.restarted()
        self.suspect.set()

    def proof_age(self) -> float:
        """Return the seconds since the last token; infinite before the first."""
        return float("inf") if self.last_proof is None else time.monotonic() - self.last_proof

    def is_out(self, stale_after_s: float) -> bool:
        """Return True if it is known not to be ready; before the first check nothing is known."""
        return self.error != _UNKNOWN and self.why_not_ready(stale_after_s) is not None

    def why_not_ready(self, stale_after_s: float) -> str | None:
        """Return why it should get no traffic, None if it is ready."""
        if self.error is not None:
            return self.error
        if not self.listed:
            return "its model list has not been read"
        if not self.warm:
            return "the warm-up has not finished"
        if self.proof_age() > stale_after_s:
            return f"no token for {self.proof_age():.0f} s"
        return None


class Circuit(StrEnum):
    """The state of a circuit."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """The circuit of one upstream; used in the event loop only."""

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._in_a_row = 0
        # Time and whether it failed, of each attempt within the window.
        self._recent: deque[tuple[float, bool]] = deque()
        self._failed_recently = 0
        self._opened_at: float | None = None
        self._trial = False

    @property
    def state(self) -> Circuit:
        """The state at this moment."""
        if self._opened_at is None:
            return Circuit.CLOSED
        waited = self._clock() - self._opened_at
        return Circuit.HALF_OPEN if waited >= self._config.open_s else Circuit.OPEN

    @property
    def passes(self) -> bool:
        """Whether a request may be sent; `begin` has to follow."""
        state = self.state
        return state is Circuit.CLOSED or (state is Circuit.HALF_OPEN and not self._trial)

    def begin(self) -> bool:
        """Note that a request is sent; True if it is the trial of a half-open circuit."""
        if self.state is Circuit.CLOSED:
            return False
        self._trial = True
        return True

    def retry_after_s(self) -> float:
        """Return the seconds until a request may be sent again."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._config.open_s - (self._clock() - self._opened_at))

    def end(self, outcome: AttemptStatus, *, trial: bool) -> None:
        """Note the end of a request."""
        if trial:
            self._trial = False
        if outcome in _NEITHER:
            return
        failed = outcome in _FAILURES
        if self._opened_at is not None:
            # Requests that were sent before the circuit opened decide nothing any more.
            if trial:
                self._open() if failed else self._close()
            return
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._remember(failed)
        if failed and (self._in_a_row >= self._config.failures or self._share_is_reached()):
            self._open()

    def _remember(self, failed: bool) -> None:
        now = self._clock()
        self._recent.append((now, failed))
        self._failed_recently += failed
        while self._recent[0][0] < now - self._config.window_s:
            self._failed_recently -= self._recent.popleft()[1]

    def _share_is_reached(self) -> bool:
        count = len(self._recent)
        enough = count >= self._config.window_requests
        return enough and self._failed_recently >= self._config.error_share * count

    def _open(self) -> None:
        self._opened_at = self._clock()

    def _close(self) -> None:
        self._opened_at = None
        self._in_a_row = self._failed_recently = 0
        self._recent.clear()


class TokenCounter:
    """Counts tokens by a `tokenizer.json`, or by bytes without one.

    Raises:
        UserError: if the file is missing or not a tokenizer.
    """

    def __init__(self, path: Path | None) -> None:
        self._tokenizer: Any = None
        if path is not None:
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises bare Exception
                raise UserError(f"{path}: not a tokenizer.json: {error}") from None

    def text(self, text: str, *, chunks: int = 0) -> int:
        """Count the tokens of a text; without a tokenizer those of a stream by its chunks."""
        if not text:
            return 0
        whole = text.encode("utf-8", "replace")
        if self._tokenizer is not None:
            encoding = self._tokenizer.encode(whole.decode("utf-8"), add_special_tokens=False)
            return len(encoding.ids)
        return chunks or -(-len(whole) // _BYTES_PER_TOKEN)

    def messages(self, messages: Iterable[Any]) -> int:
        """Count the tokens of a chat prompt, with an estimate for the template."""
        total = _PER_ANSWER
        for message in messages:
            total += _PER_MESSAGE + self.text("\n".join(message_texts(message)))
        return total

    def prompts(self, prompts: Iterable[Any]) -> int:
        """Count the tokens of prompts without a template: texts, or lists of token ids."""
        return sum(self.text(one) if isinstance(one, str) else len(one) for one in prompts)


def message_texts(message: Any) -> list[str]:
    """Return the texts of a chat message: its string, or the text parts of its list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return [text for text in texts if isinstance(text, str)]
    return []


# The kept connections that a request was given; None while it is sent again, on a new one, since
# servers drop kept connections together.
_REUSED: ContextVar[list[_Answering] | None] = ContextVar("reused", default=None)


class _Answering(ResponseHandler):
    """A connection that knows whether a byte of the answer has come."""

    begun = False

    def data_received(self, data: bytes) -> None:
        self.begun = True
        super().data_received(data)


class _Connector(TCPConnector):
    """Kept connections, without those on which a server sent what nobody asked for.

    An answer put behind another one (response splitting) must not answer the next request.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Answering, loop=self._loop)  # type: ignore[assignment]

    async def _get(self, key: Any, traces: list[Any]) -> Any:
        reused = _REUSED.get()
        while reused is not None and (kept := await super()._get(key, traces)) is not None:
            protocol = kept.protocol
            if isinstance(protocol, _Answering) and not protocol.should_close:
                protocol.begun = False
                reused.append(protocol)
                return kept
            kept.close()
        return None


class Upstream:
    """One OpenAI-compatible server; its requests belong to one event loop.

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
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if config.api_key_env:
            self._headers["authorization"] = f"Bearer {os.environ[config.api_key_env]}"
        self._proxy, key = _proxy_for(config)
        # Without a tunnel a proxy reads it from the request itself.
        tunnels = config.base_url.startswith("https:")
        self._proxy_headers = key if tunnels else None
        self._headers |= {} if tunnels else key

    @cached_property
    def _session(self) -> ClientSession:
        tls: ssl.SSLContext | bool = True
        if self.config.base_url.startswith("https:"):
            # As in httpx, SSL_CERT_FILE names other authorities than certifi's.
            authorities = os.environ.get("SSL_CERT_FILE") or certifi.where()
            tls = ssl.create_default_context(cafile=authorities)
        return ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=_KEEPALIVE_S, ssl=tls),
            skip_auto_headers=("Accept", "User-Agent"),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(connect=self.config.connect_timeout_s),
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
            auto_decompress=False,
        )

    async def _send(
        self, method: str, url: str, body: bytes | None = None, headers: Headers = _NO_HEADERS
    ) -> ClientResponse:
        """Send a request; the body of the answer is still to be read.

        What a server drops with a kept connection it has not read, unless its answer has begun.
        """
        for again in (False, True):
            reused: list[_Answering] = []
            given = _REUSED.set(None if again else reused)
            try:
                return await self._session.request(
                    method,
                    url,
                    data=body,
                    # Not the session's, which go to a proxy too.
                    headers={**self._headers, **headers},
                    # The key of one server is not sent to another.
                    allow_redirects=False,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                )
            except (ServerDisconnectedError, ClientOSError):
                if not reused or reused[-1].begun:
                    raise
            finally:
                _REUSED.reset(given)
        raise AssertionError

    async def complete(
        self, body: bytes, timeout_s: float, api: Api = CHAT, headers: Headers = _NO_HEADERS
    ) -> tuple[dict[str, Any], bytes]:
        """Ask for a whole answer; return it parsed and as it came.

        Raises:
            UpstreamFault: if there is no usable answer.
            ClientFault: if the request itself is wrong.
        """
        async with _within(timeout_s, "no answer"):
            response = await self._send("POST", self.config.base_url + api.path, body, headers)
            content = await self._read(response)
        _check_status(response.status, content)
        payload = _json(content)
        if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
            raise UpstreamFault(AttemptStatus.BAD_RESPONSE, "the answer has no list `choices`")
        return payload, content

    async def open_stream(
        self, body: bytes, timeout_s: float, api: Api = CHAT, headers: Headers = _NO_HEADERS
    ) -> ClientResponse:
        """Ask for a stream; the response must be closed by the caller. Raises as `complete`."""
        async with _within(timeout_s, "no stream"):
            response = await self._send("POST", self.config.base_url + api.path, body, headers)
            ok = response.status == HTTPStatus.OK
            content = b"" if ok else await self._read(response)
        _check_status(response.status, content)
        return response

    async def _read(self, response: ClientResponse) -> bytes:
        """Return the whole body; the connection is closed if that is not waited for."""
        limit, parts, size = self.config.max_answer_bytes, [], 0
        try:
            while part := await response.content.readany():
                size += len(part)
                if size > limit:
                    raise UpstreamFault(
                        AttemptStatus.BAD_RESPONSE,
                        f"the answer has more than {limit:,} bytes (`max_answer_bytes`)",
                    )
                parts.append(part)
        except BaseException:
            response.close()
            raise
        return b"".join(parts)

    async def listed_models(self, timeout_s: float) -> list[str]:
        """Return the ids of the models that it lists; without a list it is an `UpstreamFault`."""
        payload = await self._list(self.config.base_url + "/models", timeout_s)
        entries = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(entries, list):
            raise UpstreamFault(AttemptStatus.BAD_RESPONSE, "its list of models cannot be read")
        return [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]

    async def loaded_adapters(self, timeout_s: float) -> list[int]:
        """Return the places of the adapters of a llama.cpp server, as `listed_models`."""
        root = self.config.base_url.removesuffix("/v1")
        entries = await self._list(root + "/lora-adapters", timeout_s)
        if not isinstance(entries, list):
            raise UpstreamFault(AttemptStatus.BAD_RESPONSE, "its list of adapters cannot be read")
        return [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]

    async def _list(self, url: str, timeout_s: float) -> Any:
        async with _within(timeout_s, "no list"):
            response = await self._send("GET", url)
            content = await self._read(response)
        try:
            _check_status(response.status, content)
        except ClientFault as fault:
            raise UpstreamFault(AttemptStatus.UPSTREAM_REFUSED, str(fault), fault.status) from None
        return _json(content)

    async def aclose(self) -> None:
        """Close its connections."""
        if "_session" in vars(self):
            await self._session.close()


@asynccontextmanager
async def _within(seconds: float, missing: str) -> AsyncIterator[None]:
    """Turn a missed deadline or a broken connection into an upstream's fault."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (ClientConnectorError, ClientHttpProxyError, ConnectionTimeoutError):
        raise UpstreamFault(AttemptStatus.CONNECT_ERROR, "cannot connect") from None
    except ClientError as broken:
        detail = f"connection broken ({type(broken).__name__})"
        raise UpstreamFault(AttemptStatus.CONNECTION_LOST, detail) from None
    except TimeoutError:
        raise UpstreamFault(AttemptStatus.TIMEOUT, f"{missing} within {seconds:g} s") from None


def _proxy_for(config: UpstreamConfig) -> tuple[URL | None, dict[str, str]]:
    """Return the proxy that the environment names, none for the engine next door, and its key."""
    proxies = {} if config.is_local or proxy_bypass(config.host) else getproxies()
    named = proxies.get(urlsplit(config.base_url).scheme) or proxies.get("all")
    if not named:
        return None, {}
    url = URL(named)
    key = (
        {"proxy-authorization": encode_basic_auth(url.user, url.password or "")} if url.user else {}
    )
    return url.with_user(None), key


def _json(content: bytes) -> Any:
    try:
        return load_json(content)
    except ValueError:
        return None


def _check_status(status: int, content: bytes) -> None:
    if status == HTTPStatus.OK:
        return
    detail = f"HTTP {status}"
    if status >= 500:
        raise UpstreamFault(AttemptStatus.UPSTREAM_5XX, detail, status)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise UpstreamFault(AttemptStatus.UPSTREAM_BUSY, detail, status)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        raise UpstreamFault(AttemptStatus.TIMEOUT, detail, status)
    if status < 400 or status in (401, 403, 404, 405):
        raise UpstreamFault(AttemptStatus.UPSTREAM_REFUSED, detail, status)
    payload = _json(content)
    # Some engines do not wrap the error.
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    if not isinstance(error, dict):
        error = {"message": "The model's server refused the request.", "type": "invalid_request"}
    raise ClientFault(status, error)
