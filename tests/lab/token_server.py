"""A `TokenStream` in a thread, in place of an engine's server that has started."""

import asyncio
import threading
from types import SimpleNamespace

from tests.lab.token_stream import Behaviour, TokenStream

from tuneline.serving.client import EngineClient
from tuneline.serving.engines.server import Counters

DIED = "ended with exit code -9: it said nothing"


class TokenServer:
    """What the latency benchmark asks of an `EngineServer`."""

    def __init__(self, behaviour=None, *, parallel=4, context_tokens=1024, threads=1):
        self.request = SimpleNamespace(
            parallel=parallel, context_tokens=context_tokens, threads=threads
        )
        self.stream = TokenStream(behaviour or Behaviour())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.stream.listen(), self._loop).result(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _hang_up(self):
        """End the connections that clients have kept."""
        kept = asyncio.all_tasks() - {asyncio.current_task()}
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)

    @property
    def bodies(self):
        return self.stream.bodies

    def client(self, *, timeout=5.0):
        return EngineClient(self.stream.url, model="stub", timeout=timeout)

    def counters(self):
        with self.client() as client:
            steps = client.metrics()["steps"]
        return Counters(0, 0, steps=steps, step_requests=2 * steps)

    def tokenize(self, texts):
        return [text.split() for text in texts]

    def ended(self):
        return DIED if self.stream.dead else None
