"""An HTTP/1.1 client for one server: kept connections, whole answers and streams.

It exists for its price: of a request through the gateway, a general client costs as much as all
the rest together. Parsing is llhttp's, the parser of Node.js, by httptools; sockets and TLS are
the event loop's.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

import certifi
import httptools

from tuneline.serving.gateway.chain.http_answer import BrokenConnection, HttpAnswer

# What has come without being a whole head, larger than any server's, only fills the memory.
_HEAD_LIMIT = 64 * 1024
_PORTS = {"http": 80, "https": 443}
_NO_HEADERS: Mapping[str, str] = {}


class CannotConnect(Exception):
    """No connection could be opened."""


class HttpClient:
    """A client of one server; use it within one event loop.

    Args:
        url: any URL of the server.
        headers: headers of every request.
        connect_timeout_s: time to open a connection, TLS included.
        keepalive_s: how long an idle connection is used again.
        proxy: URL of an HTTP proxy, or None.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_s: float,
        keepalive_s: float,
        proxy: str | None = None,
    ) -> None:
        self._server = urlsplit(url)
        self._proxy = urlsplit(proxy) if proxy else None
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._kept: deque[_Connection] = deque()
        self._tls = _tls_context() if self._server.scheme == "https" else None
        lines = {"host": self._server.netloc, **headers}
        # Before the path: a proxy that does not tunnel needs the whole URL.
        self._origin = b""
        if self._proxy and not self._tls:
            self._origin = f"{self._server.scheme}://{self._server.netloc}".encode()
            lines |= _proxy_key(self._proxy)
        self._headers = "".join(f"{name}: {text}\r\n" for name, text in lines.items()).encode(
            "latin-1"
        )

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> HttpAnswer:
        """Send a request; the body of the answer is still to be read.

        A server may close a kept connection just when a request is written to it: llama.cpp's
        does so after some hundred requests, without announcing it. If not a byte of an answer
        came, the request is sent once more, on a new connection; a request that breaks on a
        new connection is the server's fault and is not tried again.

        Raises:
            CannotConnect: if no connection could be opened.
            BrokenConnection: if it broke before the head of the answer.
        """
        head = [method.encode(), b" ", self._origin, path.encode("ascii"), b" HTTP/1.1\r\n"]
        head.append(self._headers)
        head += [f"{name}: {text}\r\n".encode("latin-1") for name, text in headers.items()]
        if body is not None:
            head.append(b"content-length: %d\r\n" % len(body))
        request = b"".join([*head, b"\r\n", body or b""])
        kept = self._take()
        if kept is not None:
            try:
                return await kept.ask(request, self._kept)
            except BrokenConnection as broken:
                if broken.began:
                    raise
        return await (await self._connect()).ask(request, self._kept)

    def close(self) -> None:
        """Close the idle connections."""
        while self._kept:
            self._kept.popleft().close()

    def _take(self) -> _Connection | None:
        """Return the connection that was used last; close those that idled for too long."""
        oldest = time.monotonic() - self._keepalive_s
        while self._kept and (self._kept[0].idle_since < oldest or self._kept[0].closed):
            self._kept.popleft().close()
        while self._kept:
            connection = self._kept.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._opened()
        except (OSError, BrokenConnection) as error:  # a missed deadline is an OSError, too
            raise CannotConnect(str(error)) from None

    async def _opened(self) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port = _place(self._proxy or self._server)
        if self._proxy and self._tls:
            _, tunnel = await loop.create_connection(_Connection, host, port)
            return await self._through(tunnel)
        _, connection = await loop.create_connection(_Connection, host, port, ssl=self._tls)
        return connection

    async def _through(self, tunnel: _Connection) -> _Connection:
        """Open a connection to the server behind a proxy (RFC 9110, section 9.3.6)."""
        assert self._proxy
        assert self._tls
        host, port = _place(self._server)
        lines = {"host": f"{host}:{port}", **_proxy_key(self._proxy)}
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        answer = await tunnel.ask(f"CONNECT {host}:{port} HTTP/1.1\r\n{head}\r\n".encode(), None)
        if answer.status != HTTPStatus.OK:
            tunnel.close()
            raise OSError(f"the proxy answered {answer.status}")
        connection = _Connection()
        transport = await asyncio.get_running_loop().start_tls(
            tunnel.transport, connection, self._tls, server_hostname=host
        )
        if transport is None:
            raise OSError("the proxy closed the tunnel")
        connection.connection_made(transport)
        return connection


class _Connection(asyncio.Protocol):
    """A connection with at most one request under way; the `on_…` methods are the parser's."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pool: deque[_Connection] | None = None
        self._answer: HttpAnswer | None = None
        self._head: asyncio.Future[HttpAnswer] | None = None
        self._head_bytes = 0
        self._framed = False

    @property
    def transport(self) -> asyncio.Transport:
        """The open transport."""
        assert self._transport is not None
        return self._transport

    @property
    def closed(self) -> bool:
        """True if it cannot be used again."""
        return self._transport is None or self._transport.is_closing()

    async def ask(self, request: bytes, pool: deque[_Connection] | None) -> HttpAnswer:
        """Send a request and wait for the head of its answer.

        Args:
            request: the request as it is written.
            pool: where the connection goes once the answer has ended; None leaves it to the caller.

        Raises:
            BrokenConnection: if it broke before that.
        """
        self._pool = pool
        self._answer = HttpAnswer(self)
        self._head_bytes = 0
        self._head = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            return await self._head
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read no more for now."""
        if not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.closed:
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's has the methods, but not the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            # Nobody asked for it.
            self.close()
            return
        if self._head is not None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("it does not answer in HTTP/1.1")
        if self._head is not None and self._head_bytes > _HEAD_LIMIT:
            self._fail("the head of its answer is too large")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and self._head is None and not self._framed and exc is None:
            # A body without a length ends with its connection.
            self._finish()
        else:
            self._fail("the connection was closed" if exc is None else type(exc).__name__)

    def on_message_begin(self) -> None:
        self._framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK or self._answer is None:
            return
        self._answer.status = status
        head, self._head = self._head, None
        if head is not None and not head.done():
            head.set_result(self._answer)

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.took(body)

    def on_message_complete(self) -> None:
        # An interim answer (1xx) is followed by the answer itself.
        if self._head is None:
            self._finish()

    def _finish(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended()
            if self._pool is None:
                return
        if answer is None or self.closed or not self._parser.should_keep_alive():
            self.close()
            return
        assert self._pool is not None
        self.idle_since = time.monotonic()
        self._pool.append(self)

    def _fail(self, detail: str) -> None:
        answer, self._answer = self._answer, None
        head, self._head = self._head, None
        self.close()
        broken = BrokenConnection(detail, began=head is None or self._head_bytes > 0)
        if head is not None:
            if not head.done():
                head.set_exception(broken)
        elif answer is not None:
            answer.ended(broken)


def _tls_context() -> ssl.SSLContext:
    # As elsewhere, SSL_CERT_FILE names other authorities than the usual ones.
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def _place(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)


def _proxy_key(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
