"""An answer of an upstream whose head has come: its body, part by part or whole."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tuneline.serving.gateway.upstream_config import ANSWER_LIMIT

# Of a body that nobody reads, so much waits here before the server has to wait.
_UNREAD_LIMIT = 1 << 20


class BrokenConnection(Exception):
    """A connection broke before the answer was complete.

    Args:
        detail: short text for the log.
        began: True if a byte of the answer had come.
    """

    def __init__(self, detail: str, *, began: bool) -> None:
        super().__init__(detail)
        self.began = began


class AnswerTooLarge(BrokenConnection):
    """An answer is larger than what is taken whole; its connection was closed."""


class _Connection(Protocol):
    """The connection that an answer comes over."""

    def close(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class HttpAnswer:
    """An answer whose head has come; `status` is its HTTP status."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self._connection = connection
        self._parts: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._ended = False
        self._error: BrokenConnection | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def part(self) -> bytes:
        """Return what has come since the last call, waiting for it; empty at the end.

        Raises:
            BrokenConnection: if the answer broke off; all that came before was returned.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        found = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            self._connection.resume()
        return found

    async def read(self, limit: int = ANSWER_LIMIT) -> bytes:
        """Return the whole body; the connection is closed if that is not waited for.

        Args:
            limit: the largest body that is taken, in bytes.

        Raises:
            AnswerTooLarge: if it is larger; the rest is not read.
            BrokenConnection: if it broke off.
        """
        parts, size = [], 0
        try:
            while part := await self.part():
                size += len(part)
                if size > limit:
                    raise AnswerTooLarge(f"it has more than {limit:,} bytes", began=True)
                parts.append(part)
        except BaseException:
            self.close()
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the connection, unless the answer has ended."""
        if not self._ended:
            self._connection.close()

    def took(self, part: bytes) -> None:
        """Take a part of the body."""
        self._parts.append(part)
        self._unread += len(part)
        if self._unread > _UNREAD_LIMIT and not self._paused:
            self._paused = True
            self._connection.pause()
        self._wake()

    def ended(self, error: BrokenConnection | None = None) -> None:
        """Take the end of the body."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
