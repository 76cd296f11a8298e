"""Faults that are planted on a chain of models, and what its clients see."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tuneline.errors import RetryableError
from tuneline.serving.client import Messages
from tuneline.serving.engines.server import EngineServer
from tuneline.serving.gateway.process import GatewayAnswer, GatewayProcess


@dataclass(frozen=True)
class Client:
    """A client of the gateway."""

    gateway: GatewayProcess
    model: str
    max_tokens: int
    room: int  # tokens that the context has left for an answer
    patience: float  # longest wait for a byte, seconds

    def ask(self, messages: Messages, *, stream: bool = False) -> GatewayAnswer:
        """Send a request, decoded greedily, and read its answer to the end."""
        return self.gateway.ask(
            self.model,
            messages,
            max_tokens=self.max_tokens,
            key=next(iter(self.gateway.keys)),
            stream=stream,
            timeout=self.patience,
        )

    def endless(self, messages: Messages) -> Any:
        """Open a stream that goes on for long, and whose confidence is not judged."""
        return self.gateway.stream(
            UNJUDGED,
            messages,
            max_tokens=min(_STREAMED, max(self.room, self.max_tokens)),
            key=next(iter(self.gateway.keys)),
            timeout=self.patience,
            extra=ENDLESS,
        )


NO_FAULT = "none"
UNJUDGED = "unjudged"  # the chain without limits of confidence
REQUESTS = 2
# An answer that goes on to its limit, whatever the model has to say.
ENDLESS = {"ignore_eos": True}
# Tokens that no engine writes before it is killed.
_STREAMED = 512
_RECOVERS_WITHIN = 60.0
_PAUSE = 0.1


@dataclass(frozen=True)
class FaultReport:
    """What clients saw under one fault."""

    fault: str  # `none` for the requests without a fault
    expected: str  # who has to answer, or `error` where nobody can
    requests: int
    as_expected: int
    ended: int  # by a whole answer or a clean error
    reasons: list[str]
    planted: bool = True  # the fault took place


@dataclass(frozen=True)
class Prompts:
    """The prompts of a trial."""

    sure: Sequence[Messages]  # answers above the thresholds
    unsure: Sequence[Messages]  # answers below that of whole answers; none without a threshold


@dataclass(frozen=True)
class Chain:
    """A chain under trial."""

    client: Client
    primary: EngineServer
    second: EngineServer
    names: Sequence[str]  # of the upstreams, in order

    def run(self, prompts: Prompts) -> Iterator[FaultReport]:
        """Plant every fault; the engines are dead afterwards."""
        primary, second = self.names[0], self.names[1]
        sure = prompts.sure[:REQUESTS]
        yield self._ask(NO_FAULT, primary, sure)
        if prompts.unsure:
            yield self._ask("unsure", second, prompts.unsure[:REQUESTS])
        yield self._hung(second, sure[:1])
        yield self._dies_midstream(sure[0])
        yield self._ask("killed", second, sure)
        self.second.kill()
        last = self.names[2] if len(self.names) > 2 else "error"
        yield self._ask("both_gone", last, sure)

    def _ask(
        self, fault: str, expected: str, prompts: Sequence[Messages], *, stream: bool = False
    ) -> FaultReport:
        seen = [self.client.ask(prompt, stream=stream) for prompt in prompts]
        return report(fault, expected, seen)

    def _dies_midstream(self, prompt: Messages) -> FaultReport:
        """Kill the release as the first text of its stream reaches the client."""
        begun, last = False, dict[str, Any]()
        # A connection that breaks without a word leaves a text as the last event.
        stream = self.client.endless(prompt)
        with suppress(httpx.TransportError), stream as (_, events):
            for last in events:
                if not begun and has_text(last):
                    begun = True
                    self.primary.kill()
        seen = GatewayAnswer(200, last, complete=bool(last.get("usage")))
        return replace(
            report("dies_midstream", "error", [seen]), planted=begun and not seen.complete
        )

    def _hung(self, expected: str, prompts: Sequence[Messages]) -> FaultReport:
        self.primary.signal(signal.SIGSTOP)
        try:
            return self._ask("hung", expected, prompts, stream=True)
        finally:
            self.primary.signal(signal.SIGCONT)
            self._recover(prompts[0])

    def _recover(self, prompt: Messages) -> None:
        """Wait until the release answers again, so that one fault does not add to the next."""
        deadline = time.monotonic() + _RECOVERS_WITHIN
        seen: GatewayAnswer | None = None
        while time.monotonic() < deadline:
            document = self.client.gateway.get("/v1/health/ready").json()
            if {document["upstreams"][name] for name in self.names[:2]} == {"ready"}:
                seen = self.client.ask(prompt)
                if seen.served_by == self.names[0]:
                    return
            time.sleep(_PAUSE)
        raise RetryableError(f"the release did not answer again after a planted fault: {seen}")


def report(fault: str, expected: str, seen: Sequence[GatewayAnswer]) -> FaultReport:
    """Count what clients saw under a fault.

    Args:
        expected: the upstream that has to answer, or `error`.
        seen: what the client of each request saw.
    """

    def fits(one: GatewayAnswer) -> bool:
        if expected == "error":
            return one.clean_error
        return one.complete and one.served_by == expected

    return FaultReport(
        fault,
        expected,
        len(seen),
        sum(map(fits, seen)),
        sum(one.ended for one in seen),
        sorted({one.fallback_reason for one in seen if one.fallback_reason}),
    )


def has_text(event: Mapping[str, Any]) -> bool:
    """Return True if an event of a stream brings text."""
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or [])
