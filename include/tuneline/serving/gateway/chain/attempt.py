"""One attempt at one upstream, and the ledger row that it becomes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from tuneline.serving.gateway.attempt_status import WITHOUT_TOKENS, AttemptStatus
from tuneline.serving.gateway.chain.upstream import TokenCounter, Upstream
from tuneline.serving.gateway.ledger.database import UsageRow
from tuneline.serving.gateway.ledger.writer import Ledger
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.request import CHAT, ApiRequest, as_measured
from tuneline.serving.protocol import (
    Usage,
    choices_of,
    mean_logprob,
    reported_usage,
    token_logprobs,
    written_text,
)

log = logging.getLogger("tuneline.gateway")

# The kind of a client's request; pings and warm-up have others.
REQUEST = "request"


class UsageReports:
    """Adds up what an engine reports of each choice, over all prompts of a request.

    Attributes:
        of_one_choice: True if what was reported leaves out the other choices.
    """

    def __init__(self, choices: int, prompts: int) -> None:
        self._choices = choices
        self._each = choices // prompts
        self._ends: list[Usage] = []
        self.of_one_choice = False

    def add(self, usage: Usage, *, at_an_end: bool) -> Usage:
        """Return the usage as far as it is known with one more report."""
        if at_an_end:
            self._ends.append(usage)
        # One report more than choices is that of an engine which adds up by itself.
        if len(self._ends) != self._choices:
            return usage
        # Each prompt was reported with each of its choices, and read once.
        return Usage(
            sum(end.prompt_tokens for end in self._ends) // self._each,
            sum(end.completion_tokens for end in self._ends),
            sum(end.cached_tokens for end in self._ends) // self._each,
        )


def is_of_one_choice(answer: Mapping[str, Any]) -> bool:
    """Return True if the usage of a whole answer with several choices is only that of one.

    It is llama.cpp's, known by its `timings`.
    """
    return "timings" in answer


class Trace(Protocol):
    """What follows a request and its attempts, if anything does."""

    def began(self, attempt: Attempt) -> Mapping[str, str]:
        """Note the begin of an attempt; return headers for its upstream."""

    def ended(self, attempt: Attempt) -> None:
        """Note the end of an attempt."""


@dataclass(frozen=True)
class Call:
    """A request on its way through a chain.

    Attributes:
        request: as the first upstream is asked.
        came: as the client sent it; None for the gateway's own.
        arrived: Unix time of its admission.
    """

    request_id: str
    kind: str
    key: str
    model: str
    request: ApiRequest
    came: ApiRequest | None = None
    arrived: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.perf_counter)
    user: str = ""
    trace: Trace | None = None


@dataclass
class Attempt:
    """An attempt, filled while it runs and read once it has ended.

    Attributes:
        request: as its upstream is asked.
        number: its place in the chain, from 1.
        trial: True if it is the one by which a half-open circuit is tried.
    """

    call: Call
    number: int
    upstream: Upstream
    currency: str
    fallback_reason: AttemptStatus | None = None
    trial: bool = False
    usage: Usage | None = None
    request: ApiRequest = field(init=False)
    reports: UsageReports = field(init=False)
    texts: list[str] = field(default_factory=list)
    chunks: int = 0
    logprobs: list[float] = field(default_factory=list)
    first_token_s: float | None = None
    finish_reason: str | None = None
    outcome: AttemptStatus | None = None
    served: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Add what its upstream was measured with; expect as many answers as are asked for."""
        came = self.call.came
        self.request = as_measured(came, self.upstream.config) if came else self.call.request
        self.reports = UsageReports(self.request.choices, len(self.request.prompts))

    def add_payload(self, payload: dict[str, Any], part: str) -> None:
        """Note a whole answer (`part` is `message`) or a chunk of one (`delta`)."""
        choices = choices_of(payload)
        if usage := reported_usage(payload):
            at_an_end = all(choice.get("finish_reason") for choice in choices)
            self.usage = self.reports.add(usage, at_an_end=at_an_end and part == "delta")
            if part == "message" and self.request.choices > 1:
                self.reports.of_one_choice = is_of_one_choice(payload)
        for choice in choices:
            if text := written_text(choice):
                self.texts.append(text)
                self.chunks += part == "delta"
                if part == "delta" and self.first_token_s is None:
                    self.first_token_s = time.perf_counter() - self.clock
                self.upstream.health.note_token()
            if isinstance(reason := choice.get("finish_reason"), str):
                self.finish_reason = reason
            self.logprobs += token_logprobs(choice)

    def end(self, outcome: AttemptStatus) -> None:
        """End the attempt; only the first end counts."""
        if self.outcome is None:
            self.outcome = outcome
            self.latency_s = time.perf_counter() - self.clock
            # Whoever waits for a log keeps one text, and not one for each token.
            self.texts = ["".join(self.texts)] if self.texts else []
            # A slow ping may only mean a busy engine; readiness judges pings.
            if self.call.kind == REQUEST:
                self.upstream.breaker.end(outcome, trial=self.trial)

    def note_stream_begun(self) -> None:
        """Note that its stream has begun: a circuit that it tries need not wait for its end."""
        if self.trial:
            self.trial = False
            self.upstream.breaker.end(AttemptStatus.OK, trial=True)

    @cached_property
    def row(self) -> UsageRow:
        """The ledger's row; tokens are counted if the upstream reported none."""
        usage, estimated = self._tokens()
        config = self.upstream.config
        return UsageRow(
            request_id=self.call.request_id,
            attempt=self.number,
            time=self.began,
            kind=self.call.kind,
            key=self.call.key,
            model=self.call.model,
            upstream=config.name,
            model_served=config.asked_model,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            estimated=estimated,
            cost=self.upstream.rates.cost(usage.prompt_tokens, usage.completion_tokens),
            currency=self.currency,
            latency_ms=round(self.latency_s * 1e3, 3),
            ttft_ms=None if self.first_token_s is None else round(self.first_token_s * 1e3, 3),
            mean_logprob=mean_logprob(self.logprobs),
            status=str(self.outcome),
            served=self.served,
            fallback_reason=None if self.fallback_reason is None else str(self.fallback_reason),
            user_id=self.call.user,
            model_version=config.version,
            weights_sha256=config.weights_sha256,
        )

    @property
    def must_count(self) -> bool:
        """True if its tokens have to be counted, since the upstream reported none, or not all."""
        if self.usage is not None:
            return self.reports.of_one_choice
        return self.outcome not in WITHOUT_TOKENS or bool(self.texts)

    def _tokens(self) -> tuple[Usage, bool]:
        if not self.must_count:
            return self.usage or Usage(0, 0, 0), False
        try:
            counted = self._counted(self.upstream.counter)
        except Exception as error:  # a tokenizer's failure must not cost the row
            log.error("tokens of %s counted by bytes: %s", self.call.request_id, error)
            counted = self._counted(TokenCounter(None))
        if self.usage is not None and len(self.request.prompts) == 1:
            # All choices have the same prompt, so its count is right.
            counted = replace(self.usage, completion_tokens=counted.completion_tokens)
        return counted, True

    def _counted(self, counter: TokenCounter) -> Usage:
        request = self.request
        return Usage(
            prompt_tokens=counter.messages(request.messages)
            if request.api is CHAT
            else counter.prompts(request.prompts),
            completion_tokens=counter.text("".join(self.texts), chunks=self.chunks),
            cached_tokens=0,
        )


class Reply:
    """The product of an attempt, which a chain serves, or leaves because of a doubt."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.doubt: AttemptStatus | None = None
        self.trail = ""
        self.skipped = ""

    async def release(self) -> None:
        """Release its resources, if it has any."""


class Recorder:
    """Takes ended attempts to the ledger and the metrics."""

    def __init__(self, ledger: Ledger, metrics: Metrics, currency: str) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._currency = currency

    def begin(
        self, call: Call, number: int, upstream: Upstream, reason: AttemptStatus | None = None
    ) -> Attempt:
        """Begin an attempt; its clock runs."""
        trial = call.kind == REQUEST and upstream.breaker.begin()
        attempt = Attempt(call, number, upstream, self._currency, reason, trial)
        if call.trace is not None:
            attempt.headers = call.trace.began(attempt)
        return attempt

    def record(self, attempt: Attempt, *, served: bool) -> None:
        """Record an ended attempt; one without an end counts as aborted by the client."""
        attempt.end(AttemptStatus.CLIENT_ABORTED)
        attempt.served = served
        if attempt.call.trace is not None:
            attempt.call.trace.ended(attempt)
        if not attempt.must_count:
            # Made here, one by one: hundreds at once in the writer's thread would keep the
            # interpreter from the event loop for milliseconds.
            _ = attempt.row
        self._ledger.put(attempt)
        name = attempt.upstream.name
        self._metrics.attempts.labels(name, str(attempt.outcome)).inc()
        if attempt.first_token_s is not None:
            self._metrics.first_token_seconds.labels(name).observe(attempt.first_token_s)
        if attempt.fallback_reason is not None:
            self._metrics.fallbacks.labels(attempt.call.model, attempt.fallback_reason).inc()
