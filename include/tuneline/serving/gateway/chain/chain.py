"""The fallback chain: upstreams asked in order until one gives a usable answer.

An upstream is left when it cannot be reached, breaks, times out, answers 5xx or 429, finds the
prompt too long, or gives an answer of low confidence or not the JSON that was asked for.
It is passed over where its pings or its circuit show that it cannot answer. A stream can only be
left before its first byte was sent to the client, so its beginning is held back until a token has
come, or the whole window where its confidence is judged. A doubtful answer is kept, and served if
no later upstream answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from aiohttp import ClientError, ClientResponse

from tuneline.errors import first_line
from tuneline.serving.gateway.attempt_status import AttemptStatus, ClientFault, UpstreamFault
from tuneline.serving.gateway.chain.acceptance import Acceptance, json_asked
from tuneline.serving.gateway.chain.attempt import Attempt, Call, Recorder, Reply
from tuneline.serving.gateway.chain.upstream import Upstream
from tuneline.serving.gateway.config import ModelConfig
from tuneline.serving.gateway.json_text import dump_json, load_json
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.request import upstream_body
from tuneline.serving.protocol import DONE, SseParser, choices_of, event, is_overflow

log = logging.getLogger("tuneline.gateway")

# The end of a finished stream usually lies in the same packet as its last event;
# reading it keeps the connection for the next request.
_END_WITHIN_S = 0.2
C = TypeVar("C", bound=Reply)
# A function that asks the attempt's upstream once, and judges the answer.
Ask: TypeAlias = Callable[[Attempt, Acceptance], Awaitable[C]]


class StreamReply(Reply):
    """A stream that has begun.

    Deadlines count from the last token, not from the last byte: an engine that hangs behind a web
    server which still sends keep-alive comments or empty events is found all the same.
    """

    def __init__(self, attempt: Attempt, response: ClientResponse, *, hide_logprobs: bool) -> None:
        super().__init__(attempt)
        self._response = response
        self._hide_logprobs = hide_logprobs
        self._parser = SseParser()
        self._ready: list[bytes] = []
        self._finished = False
        # Each choice ends by itself; only the end of the last one is the stream's.
        self._unfinished = attempt.request.choices
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
        with suppress(TimeoutError, ClientError):
            async with asyncio.timeout(_END_WITHIN_S):
                while await self._response.content.readany():
                    pass

    async def _advance(self) -> None:
        """Read one chunk; a fault is kept until everything before it has been passed on."""
        try:
            async with asyncio.timeout_at(min(self._deadline, self._end)):
                chunk = await self._response.content.readany()
            self._bytes_left -= len(chunk)
            if self._bytes_left < 0:
                raise ValueError("it is too large (`max_answer_bytes`)")
            for data in self._parser.feed(chunk):
                self._take(data)
            if not chunk:
                self._finished = True
                if self._unfinished > 0:
                    self._fault = UpstreamFault(
                        AttemptStatus.CONNECTION_LOST, "the stream broke off"
                    )
        except TimeoutError:
            whole = self._end < self._deadline
            detail = "it takes too long (`stream_timeout_s`)" if whole else "no token in time"
            self._fault = UpstreamFault(AttemptStatus.TIMEOUT, detail)
        except ClientError as broken:
            detail = f"the stream broke off ({type(broken).__name__})"
            self._fault = UpstreamFault(AttemptStatus.CONNECTION_LOST, detail)
        except UpstreamFault as fault:
            self._fault = fault
        except Exception as error:  # an upstream may send anything
            detail = f"the stream can't be read: {first_line(error)}"
            self._fault = UpstreamFault(AttemptStatus.BAD_RESPONSE, detail)

    def _take(self, data: bytes) -> None:
        if data == DONE:
            self._finished = True
            return
        try:
            payload = load_json(data)
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            raise UpstreamFault(AttemptStatus.BAD_RESPONSE, "an event is not a JSON object")
        choices = choices_of(payload)
        if not choices and "error" in payload:
            raise UpstreamFault(AttemptStatus.UPSTREAM_5XX, "an error in the stream")
        written = self.attempt.chunks
        self.attempt.add_payload(payload, "delta")
        self._unfinished -= sum(bool(choice.get("finish_reason")) for choice in choices)
        if self.attempt.chunks > written:
            idle_s = self.attempt.upstream.config.idle_timeout_s
            self._deadline = asyncio.get_running_loop().time() + idle_s
        if not choices and payload.get("usage") and not self.attempt.request.wants_usage:
            return
        self._ready.append(event(_without_logprobs(payload) if self._hide_logprobs else data))


class WholeReply(Reply):
    """A whole answer; `content` is what the client gets."""

    def __init__(self, attempt: Attempt, content: bytes, doubt: AttemptStatus | None) -> None:
        super().__init__(attempt)
        self.content = content
        self.doubt = doubt


class AllFailed(Exception):
    """No upstream of the chain gave an answer; the last fault decides the status of the response.

    Attributes:
        retry_after_s: time until a circuit lets a request pass, seconds; None if none is open.
    """

    def __init__(
        self, last: AttemptStatus, trail: str, skipped: str, retry_after_s: float | None
    ) -> None:
        super().__init__("; ".join(filter(None, (trail, skipped and f"not asked: {skipped}"))))
        self.last = last
        self.trail = trail
        self.skipped = skipped
        self.retry_after_s = retry_after_s


@dataclass
class _Walk(Generic[C]):
    """One request on its way through a chain; `held` are doubtful candidates."""

    call: Call
    ask: Ask[C]
    upstreams: list[Upstream]
    attempts: list[Attempt] = field(default_factory=list)
    skipped: dict[str, AttemptStatus] = field(default_factory=dict)
    held: list[C] = field(default_factory=list)
    chosen: C | None = None
    reason: AttemptStatus | None = None
    too_long: ClientFault | None = None
    context: int = 0
    spent: bool = False

    def fits(self, upstream: Upstream) -> bool:
        """Return False if a prompt that did not fit cannot fit here either."""
        stated = upstream.config.context_tokens
        return self.too_long is None or stated is None or stated > self.context

    def skip(self, upstream: Upstream, why: AttemptStatus) -> None:
        self.skipped[upstream.name] = self.reason = why

    def ask_after_all(self, names: list[str]) -> None:
        for name in names:
            self.skipped.pop(name, None)
        self.reason = self.attempts[-1].outcome if self.attempts else None


class Chain:
    """The upstreams of one model; `fields` are those besides OpenAI's that some upstream takes."""

    def __init__(
        self,
        config: ModelConfig,
        upstreams: list[Upstream],
        recorder: Recorder,
        metrics: Metrics,
        *,
        stale_after_s: float,
    ) -> None:
        self.config = config
        self.upstreams = upstreams
        self.fields = {name for upstream in upstreams for name in upstream.config.fields}
        self.recorder = recorder
        self._metrics = metrics
        self._stale_after_s = stale_after_s

    async def answer(self, call: Call) -> WholeReply:
        """Return a whole answer; its attempts are recorded.

        Raises:
            AllFailed: if no upstream answered.
            ClientFault: if the request itself is wrong.
        """
        answer = await self._walk(_Walk(call, self._complete, self.upstreams))
        self.recorder.record(answer.attempt, served=True)
        return answer

    async def stream(self, call: Call) -> StreamReply:
        """Return a stream that has begun, which the caller records and releases.

        Raises are those of `answer`.
        """
        return await self._walk(_Walk(call, self._open, self.upstreams))

    async def _walk(self, walk: _Walk[C]) -> C:
        chosen: C | None = None
        try:
            chosen = await self._choose(walk)
        finally:
            # Attempts that were left are recorded at once, even if a cancellation comes next.
            for candidate in walk.held:
                if candidate is not chosen:
                    candidate.attempt.end(candidate.doubt or AttemptStatus.OK)
            left = [a for a in walk.attempts if chosen is None or a is not chosen.attempt]
            for attempt in left:
                self.recorder.record(attempt, served=False)
            for name, why in walk.skipped.items():
                self._metrics.skipped.labels(name, why).inc()
        chosen.trail = _trail([*left, chosen.attempt])
        chosen.skipped = _skipped(walk)
        return chosen

    async def _choose(self, walk: _Walk[C]) -> C:
        """Return the first trusted candidate, or the first doubtful one if none is trusted."""
        try:
            try:
                await self._ask_all(walk)
            except ClientFault:
                if not walk.held:
                    raise
            walk.chosen = walk.chosen or next(iter(walk.held), None)
            if walk.chosen is None:
                raise self._nobody(walk)
            return walk.chosen
        finally:
            try:
                for candidate in walk.held:
                    if candidate is not walk.chosen:
                        await candidate.release()
            except asyncio.CancelledError:
                if walk.chosen is not None:
                    await walk.chosen.release()
                raise

    async def _ask_all(self, walk: _Walk[C]) -> None:
        """Ask the upstreams that can answer; those that are not ready only if nobody else did."""
        waiting: list[tuple[int, Upstream]] = []
        ready: list[tuple[int, Upstream]] = []
        for number, upstream in enumerate(walk.upstreams, 1):
            out = upstream.health.is_out(self._stale_after_s)
            (waiting if out else ready).append((number, upstream))
        await self._ask_these(walk, ready, {upstream.name for _, upstream in waiting})
        if walk.chosen is None and not walk.held and not walk.spent:
            walk.ask_after_all([upstream.name for _, upstream in waiting])
            await self._ask_these(walk, waiting, set())

    async def _ask_these(
        self, walk: _Walk[C], these: list[tuple[int, Upstream]], not_ready: set[str]
    ) -> None:
        places = dict(these)
        for number, upstream in enumerate(walk.upstreams, 1):
            if upstream.name in not_ready:
                walk.skip(upstream, AttemptStatus.NOT_READY)
            if number not in places or not walk.fits(upstream):
                continue
            if not upstream.breaker.passes:
                walk.skip(upstream, AttemptStatus.CIRCUIT_OPEN)
                continue
            later = any(
                place > number and other.breaker.passes and walk.fits(other)
                for place, other in these
            )
            await self._try(walk, number, upstream, judged=later)
            if walk.chosen is not None or walk.spent:
                return

    async def _try(self, walk: _Walk[C], number: int, upstream: Upstream, *, judged: bool) -> None:
        """Ask one upstream, and note its product or why it was left."""
        left = self.config.budget_s - (time.perf_counter() - walk.call.clock)
        if left <= 0:
            walk.spent = True
            return
        attempt = self.recorder.begin(walk.call, number, upstream, walk.reason)
        walk.attempts.append(attempt)
        acceptance = Acceptance()
        if judged:
            limits = self.config.limits_of(upstream.name)
            acceptance = Acceptance(limits, json_asked(attempt.request.body))
        try:
            async with asyncio.timeout(left):
                found = await walk.ask(attempt, acceptance)
        except TimeoutError:
            walk.spent = True
            self._leave(
                walk, attempt, AttemptStatus.BUDGET_SPENT, "the time of the request is spent"
            )
        except UpstreamFault as fault:
            self._leave(walk, attempt, fault.outcome, fault.detail)
        except ClientFault as fault:
            if not is_overflow(fault.error):
                attempt.end(AttemptStatus.CLIENT_ERROR)
                raise
            walk.too_long = fault
            walk.context = max(walk.context, upstream.config.context_tokens or 0)
            attempt.end(AttemptStatus.CONTEXT_OVERFLOW)
            walk.reason = AttemptStatus.CONTEXT_OVERFLOW
        except Exception as error:  # an upstream may send anything
            detail = f"its answer can't be read: {first_line(error)}"
            self._leave(walk, attempt, AttemptStatus.BAD_RESPONSE, detail)
        else:
            attempt.note_stream_begun()
            walk.reason = found.doubt
            if found.doubt is None:
                walk.chosen = found
            else:
                walk.held.append(found)

    @staticmethod
    def _leave(walk: _Walk[C], attempt: Attempt, outcome: AttemptStatus, detail: str) -> None:
        attempt.end(outcome)
        walk.reason = outcome
        upstream = attempt.upstream
        upstream.health.note_fault(outcome, detail)
        log.warning("%s: %s left: %s: %s", walk.call.request_id, upstream.name, outcome, detail)

    def _nobody(self, walk: _Walk[C]) -> Exception:
        ends = [attempt.outcome for attempt in walk.attempts]
        if walk.too_long is not None and set(ends) == {AttemptStatus.CONTEXT_OVERFLOW}:
            return walk.too_long
        waits = [u.breaker.retry_after_s() for u in walk.upstreams if not u.breaker.passes]
        last = (
            AttemptStatus.BUDGET_SPENT
            if walk.spent
            else next(
                (end for end in reversed(ends) if end is not None), AttemptStatus.CIRCUIT_OPEN
            )
        )
        return AllFailed(last, _trail(walk.attempts), _skipped(walk), min(waits) if waits else None)

    async def _complete(self, attempt: Attempt, acceptance: Acceptance) -> WholeReply:
        request = attempt.request
        upstream = attempt.upstream
        limits = acceptance.limits
        body = upstream_body(request, upstream.config, judged=limits is not None)
        payload, content = await upstream.complete(
            body, upstream.config.answer_timeout_s, request.api, attempt.headers
        )
        attempt.add_payload(payload, "message")
        doubt = acceptance.of_reply(attempt.logprobs, payload)
        self._count_unknown(attempt, judged=limits is not None)
        attempt.end(doubt or AttemptStatus.OK)
        if limits is not None and not request.wants_logprobs:
            content = _without_logprobs(payload)
        return WholeReply(attempt, content, doubt)

    async def _open(self, attempt: Attempt, acceptance: Acceptance) -> StreamReply:
        request = attempt.request
        upstream = attempt.upstream
        judged = acceptance.window > 0
        body = upstream_body(request, upstream.config, judged=judged)
        response = await upstream.open_stream(
            body, upstream.config.first_token_timeout_s, request.api, attempt.headers
        )
        stream = StreamReply(attempt, response, hide_logprobs=judged and not request.wants_logprobs)
        try:
            await stream.begin(acceptance.window or 1)
            held = stream.held(acceptance.window)
            stream.doubt = acceptance.of_window(attempt.logprobs, held)
        except BaseException:
            await stream.release()
            raise
        self._count_unknown(attempt, judged=judged)
        return stream

    def _count_unknown(self, attempt: Attempt, *, judged: bool) -> None:
        if judged and not attempt.logprobs:
            self._metrics.confidence_unknown.labels(attempt.upstream.name).inc()


def _trail(attempts: list[Attempt]) -> str:
    """Return the attempts and their ends, such as `small=timeout, large`."""
    return ", ".join(
        attempt.upstream.name
        if attempt.outcome in (None, AttemptStatus.OK)
        else f"{attempt.upstream.name}={attempt.outcome}"
        for attempt in attempts
    )


def _skipped(walk: _Walk[C]) -> str:
    """Return the upstreams that were not asked and why, such as `small=not_ready`."""
    return ", ".join(f"{name}={why}" for name, why in walk.skipped.items())


def _without_logprobs(payload: dict[str, Any]) -> bytes:
    for choice in choices_of(payload):
        choice.pop("logprobs", None)
    return dump_json(payload)
