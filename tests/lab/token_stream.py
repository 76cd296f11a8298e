"""A server of streamed chat completions whose every token has a known time, and its own record.

It speaks HTTP/1.1 and server-sent events by itself, on asyncio's sockets, so that what a client
measures does not depend on a library that both of them use. `GET /timings` gives the times that the
server itself saw since the last time it was asked.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from typing import Any, cast

_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
MODEL = "stub"
# Requests of one burst have all come, and have their time, before the first of them is read, in
# seconds: what reading costs is the server's.
_BURST = 0.001
# Of a request that names none.
_TOKENS = 16


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of the server; times in seconds.

    Attributes:
        first: time to the first token, once a slot is free.
        token: time of each later token.
        slots: requests that are answered at once; the others wait.
        stall_every: one request in this many stalls before its first token; 0 for none.
        stall: how long it stalls.
        slow_first: number of first requests that stall.
        dies_at: number of the request in whose answer the server dies; 0 for none.
        short_at: number of the request whose answer lacks its last token; 0 for none.
        per_connection: requests after which a connection is closed without notice; 0 for none.
        cached: share of each prompt that is said to come from the prefix cache.
    """

    first: float = 0.002
    token: float = 0.0005
    slots: int = 64
    stall_every: int = 0
    stall: float = 0.0
    slow_first: int = 0
    dies_at: int = 0
    short_at: int = 0
    per_connection: int = 0
    cached: float = 0.0


class _Stamped(asyncio.StreamReaderProtocol):
    """A connection that knows when its last bytes came.

    A task wakes after all that came at the same moment has been read and answered, which is the
    server's own time and no client's.
    """

    received = 0.0

    def data_received(self, data: bytes) -> None:
        self.received = time.perf_counter()
        super().data_received(data)


class TokenStream:
    """The server."""

    def __init__(self, behaviour: Behaviour) -> None:
        """Describe a server; `listen` starts it."""
        self._how = behaviour
        self._numbers = itertools.count(1)
        self.bodies: list[dict[str, Any]] = []
        self.timings: list[tuple[float, float, int]] = []
        self.connections = 0
        self.dead = False
        self.url = ""

    async def listen(self) -> None:
        """Start to listen on a free port."""
        self._free = asyncio.Semaphore(self._how.slots)
        loop = asyncio.get_running_loop()

        def connection() -> _Stamped:
            return _Stamped(StreamReader(loop=loop), self._connected, loop=loop)

        self._server = await loop.create_server(connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        try:
            for number in itertools.count(1):
                await self._answer(reader, writer)
                if number == self._how.per_connection:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Cancelled only as the server ends, while a client keeps the connection.
            pass
        finally:
            writer.close()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            await self._tell(head.split()[1], writer)
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        text = await reader.readexactly(length)
        received = cast(_Stamped, writer.transport.get_protocol()).received
        async with self._free:
            await self._stream(next(self._numbers), text, writer, received)

    async def _tell(self, path: bytes, writer: StreamWriter) -> None:
        if path == b"/timings":
            text, self.timings = json.dumps(self.timings), []
        elif path == b"/metrics":
            text = f"steps {10.0 * len(self.bodies)}\n"
        else:
            text = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
        writer.write(f"{head}\r\n\r\n{text}".encode())
        await writer.drain()

    async def _stream(
        self, number: int, text: bytes, writer: StreamWriter, received: float
    ) -> None:
        how, first, last, due = self._how, 0.0, 0.0, time.perf_counter()
        await asyncio.sleep(min(_BURST, how.first / 2))
        body = json.loads(text)
        self.bodies.append(body)
        if number <= how.slow_first or (how.stall_every and number % how.stall_every == 0):
            due += how.stall
            await asyncio.sleep(how.stall)
        writer.write(_STREAM)
        tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or _TOKENS)
        tokens -= number == how.short_at
        for place in range(tokens):
            # By the clock and not by naps, whose errors would add up.
            due += how.token if place else how.first
            await asyncio.sleep(due - time.perf_counter())
            if number == how.dies_at and place == 1:
                self.dead = True
                self._server.close()
            if self.dead:
                writer.transport.abort()
                return
            delta = {"index": 0, "delta": {"content": f"t{place} "}, "finish_reason": None}
            last = time.perf_counter() - received
            first = first or last
            _send(writer, {"choices": [delta]})
            await writer.drain()
        _send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        _send(writer, {"choices": [], "usage": _usage(body, tokens, how.cached)})
        _chunk(writer, b"data: [DONE]\n\n")
        # Before the end that lets the client ask for the timings.
        self.timings.append((first, last, tokens))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _usage(body: dict[str, Any], tokens: int, cached: float) -> dict[str, Any]:
    prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": round(prompt * cached)},
    }


def _send(writer: StreamWriter, document: dict[str, Any]) -> None:
    about = {"id": "stub", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    _chunk(writer, b"data: " + json.dumps({**about, **document}).encode() + b"\n\n")


def _chunk(writer: StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
