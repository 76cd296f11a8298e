"""Faults that are planted on a chain of models, and what its clients see."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tuneline.errors import RetryableError
from tuneline.governance.gateway.faulty_link import Fault, FaultyLink
from tuneline.serving.client import Messages
from tuneline.serving.engines.server import EngineServer
from tuneline.serving.gateway.process import GatewayAnswer, GatewayProcess


@dataclass(frozen=True)
class Client:
    """A client of the gateway."""

    gateway: GatewayProcess
    model: str
    max_tokens: int
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


NO_FAULT = "none"
REQUESTS = 2
# A delay beyond any limit of the chain, as a share of it.
_TOO_SLOW = 1.5
# Events of a stream that come before its first token (the role), and after its last one (why it
# ended, its usage).
_OPENING_EVENTS, _CLOSING_EVENTS = 1, 2
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
    to_primary: FaultyLink
    to_second: FaultyLink
    names: Sequence[str]  # of the upstreams, in order
    first_token_s: float
    window: int  # tokens of a stream that are held back; 0 if streams are not judged

    def run(self, prompts: Prompts) -> Iterator[FaultReport]:
        """Plant every fault; the engines are dead afterwards."""
        primary, second = self.names[0], self.names[1]
        sure = prompts.sure[:REQUESTS]
        yield self._ask(NO_FAULT, primary, sure)
        if prompts.unsure:
            yield self._ask("unsure", second, prompts.unsure[:REQUESTS])
        yield self._linked("garbage", "garbage", second, sure)
        yield self._cut("dies_before_first_byte", second, sure, events=0)
        yield self._dies_midstream(second, sure)
        self.to_primary.delay_s = self.first_token_s * _TOO_SLOW
        yield self._linked("slow", "slow", second, sure[:1], stream=True)
        yield self._hung(second, sure[:1])
        both = [*sure[:1], *prompts.unsure[:1]]
        yield self._linked("previous_gone", "gone", primary, both, link=self.to_second)
        self.primary.kill()
        yield self._ask("killed", second, sure)
        self.second.kill()
        last = self.names[2] if len(self.names) > 2 else "error"
        yield self._ask("both_gone", last, sure)

    def _ask(
        self, fault: str, expected: str, prompts: Sequence[Messages], *, stream: bool = False
    ) -> FaultReport:
        seen = [self.client.ask(prompt, stream=stream) for prompt in prompts]
        return report(fault, expected, seen)

    def _linked(
        self,
        name: str,
        fault: Fault,
        expected: str,
        prompts: Sequence[Messages],
        *,
        stream: bool = False,
        link: FaultyLink | None = None,
    ) -> FaultReport:
        """Ask over a link with a fault, that to the primary unless another is given."""
        link = link or self.to_primary
        link.fault = fault
        try:
            return self._ask(name, expected, prompts, stream=stream)
        finally:
            link.fault = "none"
            self._recover(prompts[0])

    def _cut(
        self, name: str, expected: str, prompts: Sequence[Messages], *, events: int
    ) -> FaultReport:
        self.to_primary.events = events
        before = self.to_primary.cuts
        found = self._linked(name, "cut", expected, prompts, stream=True)
        return replace(found, planted=self.to_primary.cuts > before)

    def _dies_midstream(self, second: str, prompts: Sequence[Messages]) -> FaultReport:
        """Break each stream off once the gateway has begun to pass it on."""
        name = "dies_midstream"
        passed_on = self.window + _OPENING_EVENTS + 1 + _CLOSING_EVENTS
        found = []
        for prompt in prompts:
            one = self._cut(name, "error", [prompt], events=passed_on)
            if not one.planted:
                one = self._cut(name, second, [prompt], events=_OPENING_EVENTS)
            found.append(one)
        return FaultReport(
            name,
            " or ".join(sorted({one.expected for one in found})),
            sum(one.requests for one in found),
            sum(one.as_expected for one in found),
            sum(one.ended for one in found),
            sorted({reason for one in found for reason in one.reasons}),
            all(one.planted for one in found),
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
