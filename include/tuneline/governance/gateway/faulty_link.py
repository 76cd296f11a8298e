"""A link between gateway and engine that plants faults on the bytes of real answers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["none", "garbage", "cut", "slow", "gone"]

_GARBAGE = b"<html>no chat completion</html>"
_EVENT = b"data: "
_BLOCK = 65_536
_START_SECONDS = 10.0


class FaultyLink:
    """A TCP relay on a free port, in a thread of its own.

    `garbage` answers without asking; `cut` breaks the connection after `events` events of a stream;
    `slow` keeps back each block of an answer for `delay_s`; `gone` breaks every connection.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.fault: Fault = "none"
        self.events = 0
        self.delay_s = 0.0
        self.cuts = 0
        self.base_url = ""
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listens.wait(_START_SECONDS):
            raise RuntimeError("the link to the engine did not listen")
        return self

    def __exit__(self, *_: object) -> None:
        ended = self._ended
        if ended is not None:
            self._loop.call_soon_threadsafe(ended.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._listens.set()
        await self._ended.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _relay(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            if self.fault != "gone":
                engine, ask = await asyncio.open_connection(*self._target)
                try:
                    await self._pump(client, ask, engine, answer)
                finally:
                    ask.transport.abort()
        except OSError:
            # The engine is dead, or one side left; the other side learns it by the end.
            pass
        finally:
            answer.close()

    async def _pump(
        self,
        client: asyncio.StreamReader,
        ask: asyncio.StreamWriter,
        engine: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
    ) -> None:
        passed = 0

        async def requests() -> None:
            nonlocal passed
            while block := await client.read(_BLOCK):
                passed = 0
                if self.fault == "garbage":
                    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(_GARBAGE)}\r\n\r\n"
                    answer.write(head.encode() + _GARBAGE)
                    await answer.drain()
                    return
                if self.fault == "gone":
                    return
                ask.write(block)
                await ask.drain()

        async def answers() -> None:
            nonlocal passed
            while block := await engine.read(_BLOCK):
                if self.fault == "slow":
                    await asyncio.sleep(self.delay_s)
                end = _end_of(block, self.events - passed) if self.fault == "cut" else None
                passed += block.count(_EVENT)
                answer.write(block[:end])
                await answer.drain()
                if end is not None:
                    self.cuts += 1
                    return

        both = {asyncio.ensure_future(requests()), asyncio.ensure_future(answers())}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            with suppress(ConnectionError):
                await answer.drain()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)


def _end_of(block: bytes, events: int) -> int | None:
    """Return where so many events of a block end; None if it has no more than that."""
    at = -1
    for _ in range(events + 1):
        at = block.find(_EVENT, at + 1)
        if at < 0:
            return None
    return at
