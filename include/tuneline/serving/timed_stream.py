"""Time streamed answers to the moment that their bytes came, for many requests at once.

A benchmark's client must cost less than what it measures. An HTTP library in an event loop spends a
millisecond or more on each request, and what the others' servers send meanwhile is stamped late:
with 16 requests at once httpx adds 20 ms to the time to the first token, aiohttp 2 ms. So this
module does as little as possible while requests are under way: a connection is opened before its
clock starts, a request is one write, each piece of an answer gets its time and is put aside. HTTP
(h11) and JSON are read when the load is over.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import h11

from tuneline.serving.client import (
    CHAT_PATH,
    ChatResult,
    EngineClient,
    EngineError,
    EngineUnavailable,
    Messages,
    StreamCollector,
    raise_for_status,
)

CONNECT_SECONDS = 10.0
# How a chunked body ends: the line end of the chunk or head before it, an empty chunk, and no
# trailers. No header field ends so, and no line of JSON does.
_END = b"\r\n0\r\n\r\n"


@dataclass
class Exchange:
    """A request and the bytes of its answer; times by `time.perf_counter()`.

    Attributes:
        sent: when it was written.
        pieces: the bytes of the answer with the time at which each piece came.
        ended: when the answer was complete, or the request had failed.
        error: why it failed; empty if it did not.
    """

    request: bytes
    sent: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    error: str = ""

    @property
    def refused(self) -> bool:
        """True if it failed, or the answer's status says that it did."""
        if self.error or not self.pieces:
            return True
        status = self.pieces[0][1].split(b" ", 2)[1:2]
        return status != [b"200"]


class _Connection(asyncio.Protocol):
    """A kept connection with one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._reader: _BodyEnd | None = None
        self.used = False
        self.hung_up = False

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._exchange is None or self._reader is None:
            # An answer to no request: the next one's could not be told from it.
            self.close()
            return
        self._exchange.pieces.append((now, data))
        if self._reader.ended_by(data):
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._exchange is None or self._reader is None:
            return
        whole = error is None and self._reader.ended_by(b"")
        self.hung_up = not whole
        self._finish("" if whole else "the server closed the connection")

    async def ask(self, exchange: Exchange, timeout: float) -> None:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self.used, self._exchange, self._reader = True, exchange, _BodyEnd()
        self._done = loop.create_future()
        exchange.sent = time.perf_counter()
        self._transport.write(exchange.request)
        timer = loop.call_later(timeout, self._expire, exchange, timeout)
        try:
            await self._done
        finally:
            timer.cancel()

    def _expire(self, exchange: Exchange, timeout: float) -> None:
        """Give an exchange up in which no byte came for so long; else look again later."""
        if self._exchange is not exchange:
            return
        last = exchange.pieces[-1][0] if exchange.pieces else exchange.sent
        left = last + timeout - time.perf_counter()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._expire, exchange, timeout)
            return
        self._finish(f"did not answer in time ({timeout:g} s without a byte)")
        self.close()

    def _finish(self, error: str = "") -> None:
        assert self._exchange is not None
        assert self._done is not None
        self._exchange.ended, self._exchange.error = time.perf_counter(), error
        if self._reader is not None and self._reader.last:
            self.close()
        self._exchange = self._reader = None
        if not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _BodyEnd:
    """Tells the end of an answer, cheaply if its body is chunked, as all streams are."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._tail = b""
        self._parser: h11.Connection | None = None
        self.last = False

    def ended_by(self, data: bytes) -> bool:
        """Take the next bytes, b"" for the end of the connection; True if the answer is whole."""
        if self._head is not None:
            self._head += data
            head, found, _ = self._head.partition(b"\r\n\r\n")
            if not found and data:
                return False
            lower = head.lower()
            self.last = b"connection: close" in lower
            cheap = b"transfer-encoding: chunked" in lower and b"trailer:" not in lower
            if not cheap:
                self._parser = _parser()
            data, self._head = self._head, None
        if self._parser is not None:
            return self._parsed(self._parser, data)
        self._tail = (self._tail + data)[-len(_END) :]
        return self._tail == _END

    def _parsed(self, parser: h11.Connection, data: bytes) -> bool:
        try:
            parser.receive_data(data)
            return any(isinstance(event, h11.EndOfMessage) for event in _events(parser))
        except h11.RemoteProtocolError:
            # What is no HTTP has no further end that could be waited for; `read_answer` says so.
            self.last = True
            return bool(data)


class Link:
    """A client's place at a server: a connection that is open before a clock starts."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = urlsplit(url)
        self._timeout = timeout
        self._connection: _Connection | None = None

    async def open(self) -> str:
        """Open the connection, or again if the server has closed it; say why that failed."""
        if self._connection is not None and self._connection.open:
            return ""
        secure = self._url.scheme == "https"
        port = self._url.port or (443 if secure else 80)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, self._connection = await asyncio.get_running_loop().create_connection(
                    _Connection,
                    self._url.hostname or "",
                    port,
                    ssl=ssl.create_default_context() if secure else None,
                )
        except TimeoutError:
            return f"did not accept a connection within {CONNECT_SECONDS:g} s"
        except OSError as error:
            return f"can't be reached: {error}"
        return ""

    async def ask(self, request: bytes) -> Exchange:
        """Send a request and wait for its answer.

        A server may close a kept connection while the next request is being written (llama.cpp
        does so after every answer). That request was never read, so it is written again, with a
        new clock, to a new connection (RFC 9112, 9.3.1).
        """
        while True:
            unreachable = await self.open()
            if unreachable:
                now = time.perf_counter()
                return Exchange(request, now, [], now, unreachable)
            assert self._connection is not None
            connection, kept = self._connection, self._connection.used
            exchange = Exchange(request)
            await connection.ask(exchange, self._timeout)
            unread = kept and connection.hung_up and not exchange.pieces
            if not unread:
                return exchange

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def streamed_request(
    client: EngineClient,
    messages: Messages,
    *,
    max_tokens: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes of a request for a streamed answer; the options are those of `chat`."""
    body = client.chat_body(messages, max_tokens=max_tokens, stream=True, extra=extra)
    data = json.dumps(body).encode()
    address = urlsplit(client.base_url)
    fields = {
        "Host": address.netloc.rpartition("@")[2],
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Content-Length": str(len(data)),
        **client.headers,
    }
    writer = h11.Connection(h11.CLIENT)
    target = address.path.rstrip("/") + CHAT_PATH
    request = h11.Request(method="POST", target=target, headers=list(fields.items()))
    parts = [writer.send(request), writer.send(h11.Data(data)), writer.send(h11.EndOfMessage())]
    return b"".join(part for part in parts if part)


def read_answer(exchange: Exchange, url: str) -> ChatResult:
    """Read the streamed answer of an exchange; its times are those at which its bytes came.

    Raises:
        ContextOverflow: if the prompt was too long.
        EngineError: if the engine refused the request or broke the protocol.
        EngineUnavailable: if it could not be reached, was loading, or timed out.
    """
    if exchange.error:
        raise EngineUnavailable(f"{url}: {exchange.error}")
    try:
        status, pieces = _body(exchange)
    except h11.RemoteProtocolError as error:
        raise EngineError(f"{url} did not answer with HTTP: {error}") from None
    raise_for_status(status, b"".join(data for _, data in pieces).decode(errors="replace"))
    collector = StreamCollector(exchange.sent)
    try:
        for at, data in pieces:
            collector.feed(data, at)
    except ValueError as error:
        raise EngineError(f"{url} did not answer with JSON: {error}") from error
    return collector.result(exchange.ended)


def _body(exchange: Exchange) -> tuple[int, list[tuple[float, bytes]]]:
    """Return the status of an answer, and the pieces of its body with the time of each one."""
    parser, status = _parser(), 0
    pieces: list[tuple[float, bytes]] = []
    for at, piece in [*exchange.pieces, (exchange.ended, b"")]:
        if not piece and parser.their_state is not h11.SEND_BODY:
            break
        parser.receive_data(piece)
        for event in _events(parser):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                pieces.append((at, bytes(event.data)))
    return status, pieces


def _parser() -> h11.Connection:
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "-")]))
    parser.send(h11.EndOfMessage())
    return parser


def _events(parser: h11.Connection) -> Iterator[Any]:
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return
        yield event
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return
