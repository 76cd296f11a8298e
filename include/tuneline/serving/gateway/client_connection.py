"""A client's connection, with deadlines and sizes that the server library does not set.

uvicorn waits for ever for the rest of a request's head, keeps headers of any size, and waits for
ever on a client that stops reading. Each of these lets one client hold memory and places that
others need.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tuneline.serving.gateway.limits import LimitsConfig
from tuneline.serving.gateway.protocol import error_body


def connection_class(limits: LimitsConfig) -> type[asyncio.Protocol]:
    """Return the protocol class of a server with these limits."""

    class Limited(ClientConnection):
        LIMITS = limits

    return Limited


class ClientConnection(HttpToolsProtocol):
    """A connection whose client has to keep within the limits.

    A head that comes in one piece, as nearly all do, costs no timer.
    """

    LIMITS = LimitsConfig()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._in_head = True
        self._head_bytes = 0
        self._message_over = True
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._abort_after("head", self.LIMITS.idle_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in self._timers.values():
            timer.cancel()
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
        elif not self.transport.is_closing():
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
