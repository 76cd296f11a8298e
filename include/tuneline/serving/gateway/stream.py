"""A stream of an upstream on its way to a client: read, counted, passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from tuneline.errors import first_line
from tuneline.serving.gateway import json_text
from tuneline.serving.gateway.attempt import Attempt, Candidate
from tuneline.serving.gateway.http_answer import BrokenConnection, HttpAnswer
from tuneline.serving.gateway.outcome import Outcome, UpstreamFault
from tuneline.serving.gateway.protocol import choices_of, without_logprobs
from tuneline.serving.gateway.sse import DONE, SseParser, event

# The end of a finished stream usually lies in the same packet as its last event;
# reading it keeps the connection for the next request.
_END_WITHIN_S = 0.2


class OpenStream(Candidate):
    """A stream that has begun.

    Deadlines count from the last token, not from the last byte: an engine that hangs behind a
    web server which still sends keep-alive comments or empty events is found all the same.

    Args:
        attempt: the attempt that notes what the stream brings.
        response: the open response.
        hide_logprobs: True if the gateway asked for log-probabilities and the client did not.
    """

    def __init__(self, attempt: Attempt, response: HttpAnswer, *, hide_logprobs: bool) -> None:
        super().__init__(attempt)
        self._response = response
        self._hide_logprobs = hide_logprobs
        self._parser = SseParser()
        self._ready: list[bytes] = []
        self._finished = False
        # Each choice ends by itself; only the end of the last one is the stream's.
        self._unfinished = attempt.call.request.choices
        self._fault: UpstreamFault | None = None
        config, now = attempt.upstream.config, asyncio.get_running_loop().time()
        self._bytes_left = config.max_answer_bytes
        self._end = now + config.stream_timeout_s
        self._deadline = now + config.first_token_timeout_s

    async def begin(self, tokens: int) -> None:
        """Read a number of tokens, or all of a shorter stream.

        Raises:
            UpstreamFault: if it broke off before that.
        """
        while max(self.attempt.chunks, len(self.attempt.logprobs)) < tokens and not self._finished:
            await self._advance()
            if self._fault is not None:
                raise self._fault

    def held(self, tokens: int) -> list[bytes] | None:
        """Return the events of a stream of so many tokens at most, None of a longer one.

        What the network happened to deliver beyond that many does not count, so that the same
        answer is judged alike each time.
        """
        short = max(self.attempt.chunks, len(self.attempt.logprobs)) <= tokens
        return list(self._ready) if self._finished and short else None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes for the client, without the final `[DONE]`.

        Raises:
            UpstreamFault: if it broke off; all that came before was yielded.
        """
        while True:
            if self._ready:
                piece = b"".join(self._ready)
                self._ready.clear()
                yield piece
            if self._fault is not None:
                raise self._fault
            if self._finished:
                return
            await self._advance()

    async def release(self) -> None:
        """Close the stream; an upstream that is still writing notices and stops."""
        self._response.close()

    async def read_end(self) -> None:
        """Read the rest after the last event, so that the connection can serve again."""
        with suppress(TimeoutError, BrokenConnection):
            async with asyncio.timeout(_END_WITHIN_S):
                await self._response.read()

    async def _advance(self) -> None:
        """Read one chunk; a fault is kept until everything before it has been passed on."""
        try:
            async with asyncio.timeout_at(min(self._deadline, self._end)):
                chunk = await self._response.part()
            self._bytes_left -= len(chunk)
            if self._bytes_left < 0:
                raise ValueError("it is too large (`max_answer_bytes`)")
            for data in self._parser.feed(chunk):
                self._take(data)
            if not chunk:
                self._finished = True
                if self._unfinished > 0:
                    self._fault = UpstreamFault(Outcome.CONNECTION_LOST, "the stream broke off")
        except TimeoutError:
            whole = self._end < self._deadline
            detail = "it takes too long (`stream_timeout_s`)" if whole else "no token in time"
            self._fault = UpstreamFault(Outcome.TIMEOUT, detail)
        except BrokenConnection as broken:
            detail = f"the stream broke off ({broken})"
            self._fault = UpstreamFault(Outcome.CONNECTION_LOST, detail)
        except UpstreamFault as fault:
            self._fault = fault
        except Exception as error:  # an upstream may send anything
            detail = f"the stream can't be read: {first_line(error)}"
            self._fault = UpstreamFault(Outcome.BAD_RESPONSE, detail)

    def _take(self, data: bytes) -> None:
        if data == DONE:
            self._finished = True
            return
        try:
            payload = json_text.loads(data)
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            raise UpstreamFault(Outcome.BAD_RESPONSE, "an event is not a JSON object")
        choices = choices_of(payload)
        if not choices and "error" in payload:
            raise UpstreamFault(Outcome.UPSTREAM_5XX, "an error in the stream")
        written = self.attempt.chunks
        self.attempt.saw(payload, "delta")
        self._unfinished -= sum(bool(choice.get("finish_reason")) for choice in choices)
        if self.attempt.chunks > written:
            idle_s = self.attempt.upstream.config.idle_timeout_s
            self._deadline = asyncio.get_running_loop().time() + idle_s
        if not choices and payload.get("usage") and not self.attempt.call.request.wants_usage:
            return
        self._ready.append(event(without_logprobs(payload) if self._hide_logprobs else data))
