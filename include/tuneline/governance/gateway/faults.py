"""Faults that are planted on a chain of models, and what its clients see."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tuneline.errors import RetryableError
from tuneline.governance.gateway.faulty_link import Fault, FaultyLink
from tuneline.serving.client import Messages
from tuneline.serving.engines.server import EngineServer
from tuneline.serving.gateway.process import GatewayProcess


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request."""

    status: int  # HTTP; 0 if the connection broke
    served_by: str | None  # None if no upstream answered
    reason: str | None  # why an earlier upstream was left or passed over
    complete: bool
    clean_error: bool  # an error of OpenAI's form, with a code

    @property
    def ended(self) -> bool:
        """Whether the client knows how its request ended."""
        return self.complete or self.clean_error


@dataclass(frozen=True)
class Client:
    """A client of the gateway."""

    gateway: GatewayProcess
    model: str
    max_tokens: int
    patience: float  # longest wait for a byte, seconds

    def ask(self, messages: Messages, *, stream: bool = False) -> Seen:
        """Send a request, decoded greedily, and read its answer to the end."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
        }
        headers = {"Authorization": f"Bearer {next(iter(self.gateway.keys.values()))}"}
        url = self.gateway.base_url + "/v1/chat/completions"
        try:
            response = httpx.post(
                url, json=body, headers=headers, timeout=self.patience, trust_env=False
            )
        except httpx.TransportError:
            return Seen(0, None, None, complete=False, clean_error=False)
        text = response.text.rstrip()
        lines = text.splitlines() if stream else [text]
        last = next(filter(None, map(_document, reversed(lines))), {})
        complete = response.is_success and (
            text.endswith("data: [DONE]") if stream else "choices" in last
        )
        return Seen(
            response.status_code,
            response.headers.get("x-tuneline-served-by"),
            response.headers.get("x-tuneline-fallback-reason"),
            complete=complete,
            clean_error=not complete and bool((last.get("error") or {}).get("code")),
        )


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text.removeprefix("data: "))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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

    def run(self, prompts: Prompts) -> list[FaultReport]:
        """Plant every fault; the engines are dead afterwards."""
        primary, second = self.names[0], self.names[1]
        sure = prompts.sure[:REQUESTS]
        reports = [self._ask(NO_FAULT, primary, sure)]
        if prompts.unsure:
            reports.append(self._ask("unsure", second, prompts.unsure[:REQUESTS]))
        with self._on(self.to_primary, "garbage", sure[0]):
            reports.append(self._ask("garbage", second, sure))
        reports.append(self._cut("dies_before_first_byte", second, sure, events=0))
        reports.append(self._dies_midstream(second, sure))
        self.to_primary.delay_s = self.first_token_s * _TOO_SLOW
        with self._on(self.to_primary, "slow", sure[0]):
            reports.append(self._ask("slow", second, sure[:1], stream=True))
        reports.append(self._hung(second, sure[:1]))
        with self._on(self.to_second, "gone", sure[0]):
            reports.append(self._ask("previous_gone", primary, [*sure[:1], *prompts.unsure[:1]]))
        self.primary.kill()
        reports.append(self._ask("killed", second, sure))
        self.second.kill()
        last = self.names[2] if len(self.names) > 2 else "error"
        reports.append(self._ask("both_gone", last, sure))
        return reports

    def _ask(
        self, fault: str, expected: str, prompts: Sequence[Messages], *, stream: bool = False
    ) -> FaultReport:
        return report(fault, expected, [self.client.ask(one, stream=stream) for one in prompts])

    @contextmanager
    def _on(self, link: FaultyLink, fault: Fault, prompt: Messages) -> Iterator[None]:
        """Have a link fail, and wait until the release answers again."""
        link.fault = fault
        try:
            yield
        finally:
            link.fault = "none"
            self._recover(prompt)

    def _cut(
        self, name: str, expected: str, prompts: Sequence[Messages], *, events: int
    ) -> FaultReport:
        self.to_primary.events = events
        before = self.to_primary.cuts
        with self._on(self.to_primary, "cut", prompts[0]):
            found = self._ask(name, expected, prompts, stream=True)
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
        seen: Seen | None = None
        while time.monotonic() < deadline:
            document = self.client.gateway.get("/v1/health/ready").json()
            if {document["upstreams"][name] for name in self.names[:2]} == {"ready"}:
                seen = self.client.ask(prompt)
                if seen.served_by == self.names[0]:
                    return
            time.sleep(_PAUSE)
        raise RetryableError(f"the release did not answer again after a planted fault: {seen}")


def report(fault: str, expected: str, seen: Sequence[Seen]) -> FaultReport:
    """Count what clients saw under a fault."""

    def fits(one: Seen) -> bool:
        if expected == "error":
            return one.clean_error
        return one.complete and one.served_by == expected

    return FaultReport(
        fault,
        expected,
        len(seen),
        sum(map(fits, seen)),
        sum(one.ended for one in seen),
        sorted({one.reason for one in seen if one.reason}),
    )
