"""A client's connection, with deadlines, sizes and a number that the server library does not set.

uvicorn waits for ever for the rest of a request's head, keeps headers of any size, waits for ever
on a client that stops reading, and opens connections until no file can be opened. Each of these
lets one client hold memory and places that others need.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from contextlib import suppress

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tuneline.serving.gateway.limits import LimitsConfig
from tuneline.serving.gateway.protocol import error_body

# Who connects has something to say, and a connection without a key is free to make.
_FIRST_BYTE_S = 5.0
# Requests that a client sends before it has an answer to the first.
_MOST_PIPELINED = 16
# Of the process's descriptors, those for everything but connections: ledger, logs, libraries.
_OTHER_FILES = 64
# A limit without end makes some libraries slow.
_MOST_FILES = 65_536


def connections_at_most(limits: LimitsConfig, max_in_flight: int) -> int:
    """Let the process open as many files as it may; return the connections that clients may have.

    Args:
        limits: the limits of clients.
        max_in_flight: requests under way, each of which may need a connection to an upstream.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        # Some systems allow less than they state.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    free = (_MOST_FILES if soft == resource.RLIM_INFINITY else soft) - _OTHER_FILES
    return max(1, min(limits.connections, free - min(max_in_flight, free // 2)))


class Connections:
    """The open connections of clients, of which an idle one makes room for a new one.

    Args:
        most: how many may be open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_address: Counter[str] = Counter()
        # In the order in which they fell idle.
        self._idle: dict[ClientConnection, None] = {}

    def opened(self, connection: ClientConnection) -> None:
        """Take a new connection; without room for it, close it or an idle one.

        Of the idle ones it is the oldest of the address that has the most connections, so that
        nobody shuts others out.
        """
        self._of_address[connection.address] += 1
        if self._of_address.total() > self._most:
            crowded = self._of_address
            leaves = max(self._idle, key=lambda one: crowded[one.address], default=connection)
            self._idle.pop(leaves, None)
            # What it has not read goes with it.
            leaves.transport.abort()
        if not connection.transport.is_closing():
            self.idles(connection)

    def idles(self, connection: ClientConnection) -> None:
        """Note that a connection has no request under way."""
        self._idle[connection] = None

    def works(self, connection: ClientConnection) -> None:
        """Note that it has one."""
        self._idle.pop(connection, None)

    def lost(self, connection: ClientConnection) -> None:
        """Forget a connection that was closed."""
        self._idle.pop(connection, None)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]


def connection_class(limits: LimitsConfig, most: int) -> type[asyncio.Protocol]:
    """Return the protocol class of a server with these limits, and so many connections."""

    class Limited(ClientConnection):
        LIMITS = limits
        OPEN = Connections(most)

    return Limited


class ClientConnection(HttpToolsProtocol):
    """A connection whose client has to keep within the limits.

    A head that comes in one piece, as nearly all do, costs no timer.
    """

    LIMITS: LimitsConfig
    OPEN: Connections

    @property
    def address(self) -> str:
        """The address of the client, without its port."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._in_head = True
        self._head_bytes = 0
        self._message_over = True
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._abort_after("head", min(_FIRST_BYTE_S, self.LIMITS.idle_timeout_s))
        self.OPEN.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in self._timers.values():
            timer.cancel()
        self.OPEN.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._in_head:
            if self._head_bytes == 0:
                self._stop("head")
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > self.LIMITS.header_bytes:
            self._refuse_head()
        elif self._head_bytes and "head" not in self._timers:
            self._abort_after("head", self.LIMITS.header_timeout_s)

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head is too large."""
        self._stop("head")
        self._in_head = self._message_over = False
        limit = self.LIMITS.header_bytes
        head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_bytes > limit and head > limit:
            self._refuse_head()
        elif len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.OPEN.works(self)
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_head = self._message_over = True
        self._head_bytes = 0
        self._stop("body")
        if self.cycle is not None:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, if its request was taken."""
        if self.cycle is not None:
            super().on_body(body)

    def on_response_complete(self) -> None:
        """Give a client that was answered early some time for the rest of its body."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.OPEN.idles(self)
        if not self._message_over:
            self._abort_after("body", self.LIMITS.body_timeout_s)

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        super().pause_writing()
        self._abort_after("write", self.LIMITS.write_timeout_s)

    def resume_writing(self) -> None:
        """Note that it reads again."""
        super().resume_writing()
        self._stop("write")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in OpenAI's form."""
        self._refuse(400, msg)

    def _refuse_head(self) -> None:
        self._refuse(431, f"The headers are larger than {self.LIMITS.header_bytes} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(message, "invalid_request_error", None)
        head = STATUS_LINE[status] + (
            b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()

    def _abort_after(self, what: str, seconds: float) -> None:
        self._stop(what)
        self._timers[what] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, what: str) -> None:
        timer = self._timers.pop(what, None)
        if timer is not None:
            timer.cancel()
