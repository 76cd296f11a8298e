"""The fallback chain: upstreams asked in order until one gives a usable answer.

An upstream is left when it cannot be reached, breaks, times out, answers 5xx or 429, or answers
with low confidence. A stream can only be left before its first byte was sent to the client, so
its beginning is held back until a token has come, or the whole window where its confidence is
judged. An answer of low confidence is kept, and served if no later upstream answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from tuneline.serving.gateway.attempt import Attempt, Call, Candidate, Recorder
from tuneline.serving.gateway.confidence import is_low
from tuneline.serving.gateway.config import LowConfidenceConfig, ModelConfig
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.outcome import ClientFault, Outcome, UpstreamFault
from tuneline.serving.gateway.protocol import upstream_body, without_logprobs
from tuneline.serving.gateway.stream import OpenStream
from tuneline.serving.gateway.upstream import Upstream

log = logging.getLogger("tuneline.gateway")


C = TypeVar("C", bound=Candidate)
# A function that asks the attempt's upstream once, and judges the answer if limits are given.
Ask: TypeAlias = Callable[[Attempt, LowConfidenceConfig | None], Awaitable[C]]


class Answer(Candidate):
    """A whole answer; `content` is what the client gets."""

    def __init__(self, attempt: Attempt, content: bytes, *, low: bool) -> None:
        super().__init__(attempt)
        self.content = content
        self.low = low


class AllFailed(Exception):
    """No upstream of the chain gave an answer."""

    def __init__(self, attempts: list[Attempt]) -> None:
        super().__init__(_trail(attempts))
        self.attempts = attempts


class Chain:
    """The upstreams of one model."""

    def __init__(
        self, config: ModelConfig, upstreams: list[Upstream], recorder: Recorder, metrics: Metrics
    ) -> None:
        self.config = config
        self.upstreams = upstreams
        self.recorder = recorder
        self._metrics = metrics

    async def answer(self, call: Call) -> Answer:
        """Return a whole answer; its attempts are recorded.

        Raises:
            AllFailed: if no upstream answered.
            ClientFault: if the request itself is wrong.
        """
        answer = await self._walk(call, self._complete)
        self.recorder.record(answer.attempt, served=True)
        return answer

    async def stream(self, call: Call) -> OpenStream:
        """Return an open stream that has begun; the caller records and releases it.

        Raises:
            AllFailed: if no upstream answered.
            ClientFault: if the request itself is wrong.
        """
        return await self._walk(call, self._open)

    async def _walk(self, call: Call, ask: Ask[C]) -> C:
        attempts: list[Attempt] = []
        held: list[C] = []
        chosen: C | None = None
        try:
            chosen = await self._choose(call, ask, attempts, held)
        finally:
            # Attempts that were left are recorded at once, even if a cancellation comes next.
            for candidate in held:
                if candidate is not chosen:
                    candidate.attempt.end(Outcome.LOW_CONFIDENCE)
            left = [a for a in attempts if chosen is None or a is not chosen.attempt]
            for attempt in left:
                self.recorder.record(attempt, served=False)
        chosen.trail = _trail([*left, chosen.attempt])
        return chosen

    async def _choose(self, call: Call, ask: Ask[C], attempts: list[Attempt], held: list[C]) -> C:
        """Return the first trusted candidate, or the first doubtful one if none is trusted.

        Args:
            call: the request.
            ask: function that asks an upstream.
            attempts: list that gets every attempt.
            held: list that gets every doubtful candidate; all but the one returned are released.
        """
        chosen: C | None = None
        reason: Outcome | None = None
        try:
            falls_back = call.request.api.falls_back
            upstreams = self.upstreams if falls_back else self.upstreams[:1]
            for number, upstream in enumerate(upstreams, 1):
                attempt = self.recorder.begin(call, number, upstream, reason)
                attempts.append(attempt)
                # The last upstream has no successor, so its answer is not judged.
                limits = None if number == len(upstreams) else self.config.low_confidence
                try:
                    found, reason = await self._try(attempt, ask, limits)
                except ClientFault:
                    if not held:
                        raise
                    break
                if found is not None and not found.low:
                    chosen = found
                    break
                if found is not None:
                    held.append(found)
            chosen = chosen or next(iter(held), None)
            if chosen is None:
                raise AllFailed(attempts)
            return chosen
        finally:
            try:
                for candidate in held:
                    if candidate is not chosen:
                        await candidate.release()
            except asyncio.CancelledError:
                if chosen is not None:
                    await chosen.release()
                raise

    @staticmethod
    async def _try(
        attempt: Attempt, ask: Ask[C], limits: LowConfidenceConfig | None
    ) -> tuple[C | None, Outcome | None]:
        """Return the upstream's product, and the reason to go on to the next one."""
        try:
            found = await ask(attempt, limits)
        except UpstreamFault as fault:
            attempt.end(fault.outcome)
            attempt.upstream.health.met(fault.outcome, fault.detail)
            request_id, name = attempt.call.request_id, attempt.upstream.name
            log.warning("%s: %s left: %s", request_id, name, fault)
            return None, fault.outcome
        except ClientFault:
            attempt.end(Outcome.CLIENT_ERROR)
            raise
        return found, Outcome.LOW_CONFIDENCE if found.low else None

    async def _complete(self, attempt: Attempt, limits: LowConfidenceConfig | None) -> Answer:
        request = attempt.call.request
        upstream = attempt.upstream
        body = upstream_body(request, upstream.config, judged=limits is not None)
        payload, content = await upstream.complete(
            body, upstream.config.answer_timeout_s, request.api, attempt.headers
        )
        attempt.saw(payload, "message")
        low = limits is not None and self._judge(attempt, limits)
        attempt.end(Outcome.LOW_CONFIDENCE if low else Outcome.OK)
        if limits is not None and not request.wants_logprobs:
            content = without_logprobs(payload)
        return Answer(attempt, content, low=low)

    async def _open(self, attempt: Attempt, limits: LowConfidenceConfig | None) -> OpenStream:
        request = attempt.call.request
        upstream = attempt.upstream
        judged = limits is not None and limits.stream_window_tokens > 0
        body = upstream_body(request, upstream.config, judged=judged)
        response = await upstream.open_stream(
            body, upstream.config.first_token_timeout_s, request.api, attempt.headers
        )
        stream = OpenStream(attempt, response, hide_logprobs=judged and not request.wants_logprobs)
        try:
            await stream.begin(limits.stream_window_tokens if limits and judged else 1)
        except BaseException:
            await stream.release()
            raise
        if limits and judged:
            stream.low = self._judge(attempt, limits)
        return stream

    def _judge(self, attempt: Attempt, limits: LowConfidenceConfig) -> bool:
        if not attempt.logprobs:
            name = "tuneline_gateway_confidence_unknown_total"
            self._metrics.add(name, upstream=attempt.upstream.name)
        return is_low(attempt.logprobs, limits)


def _trail(attempts: list[Attempt]) -> str:
    """Return the attempts and their ends, such as `small=timeout, large`."""
    return ", ".join(
        attempt.upstream.name
        if attempt.outcome in (None, Outcome.OK)
        else f"{attempt.upstream.name}={attempt.outcome}"
        for attempt in attempts
    )
