"""Traffic through a gateway whose cost is known, and what its ledger must say of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx

from tuneline.asking.models import ALIAS
from tuneline.errors import RetryableError
from tuneline.evidence import Measurement, measure
from tuneline.governance.gateway.faults import ENDLESS, has_text
from tuneline.serving.client import Messages
from tuneline.serving.engines.server import EngineServer
from tuneline.serving.gateway.ledger.database import UsageRow
from tuneline.serving.gateway.ledger.reports import rows_between
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import free_port


@dataclass(frozen=True)
class Tokens:
    """Token counts of one witness."""

    prompt: int  # the engine leaves out those that it had cached
    completion: int

    def off(self, other: Tokens) -> int:
        """Return the tokens by which two counts differ, of prompts and completions together."""
        return abs(self.prompt - other.prompt) + abs(self.completion - other.completion)


@dataclass(frozen=True)
class Received:
    """What a client had of one request."""

    usage: Tokens | None  # None if it was cut off before it was told
    chunks: int = 0  # pieces of text that it got
    request_id: str | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Phase:
    """Requests of one kind, which ran alone."""

    name: str  # the kind, in the names of measurements
    received: Sequence[Received]
    rows: Sequence[UsageRow]  # of requests, since the phase began
    engine: Tokens  # its counters over the phase
    cut: int = 0  # attempts that were cut off before their usage was known
    unseen: int = 0  # completion tokens of such an attempt beyond those that the gateway saw
    own: Sequence[UsageRow] = ()  # the gateway's own pings, which the engine counts as well

    @property
    def billed_otherwise(self) -> int:
        """Tokens by which the ledger differs from what clients were told, request by request."""
        served = {row.request_id: row for row in self.rows if row.served}
        off = 0
        for request in self.received:
            if request.usage is None:
                continue
            row = served.get(request.request_id or "")
            booked = Tokens(row.prompt_tokens, row.completion_tokens) if row else Tokens(0, 0)
            off += request.usage.off(booked)
        return off

    @property
    def booked(self) -> Tokens:
        """Tokens in the ledger; of the prompts those of reported usage that were not cached."""
        rows = [*self.rows, *self.own]
        computed = [r.prompt_tokens - r.cached_tokens for r in rows if not r.estimated]
        return Tokens(sum(computed), sum(row.completion_tokens for row in rows))

    @property
    def limit(self) -> int:
        """Completion tokens that may be missing: of attempts cut off, and of failed pings."""
        failed = sum(row.status != "ok" for row in self.own)
        return self.cut * self.unseen + failed * PING_TOKENS

    @property
    def cut_rows(self) -> list[UsageRow]:
        """Rows of the requests whose clients were told no usage."""
        told = {request.request_id for request in self.received if request.usage}
        return [row for row in self.rows if row.request_id not in told]


def exact(phase: Phase) -> list[Measurement]:
    """Judge a phase in which every attempt ended with a usage: all three must agree."""
    off_engine = phase.booked.off(phase.engine)
    return [
        *_rows(phase),
        measure(f"{phase.name}_tokens_off_engine", off_engine, "tokens", "==", 0),
    ]


def bounded(phase: Phase) -> list[Measurement]:
    """Judge a phase with attempts that were cut off: what nobody was told is bounded.

    The ledger must hold a row for each attempt. It must not bill a cut answer below what its client
    received, nor more than the engine generated, and it may miss what the engine generated until it
    noticed, see `Phase.limit`. Where the engine was too fast for any attempt to be cut off, the
    phase shows nothing, and warns.
    """
    cut_off = sum(row.status != "ok" for row in phase.rows)
    return [
        measure(f"{phase.name}_cut_off", cut_off, "attempts", ">=", 1, on_breach="warn"),
        *_rows(phase),
        *_bounds(phase, sum(r.chunks for r in phase.received if not r.usage)),
    ]


def killed(phase: Phase, before: Sequence[UsageRow], now: Sequence[UsageRow]) -> list[Measurement]:
    """Judge a gateway that was killed amid requests and started again on the same ledger.

    Requests under way at the kill may have no row, also if they ended just then; what they cost is
    bounded as for others that were cut off.
    """
    there = {(row.request_id, row.attempt): row for row in now}
    changed = sum(there.get((row.request_id, row.attempt)) != row for row in before)
    billed = {row.request_id for row in phase.rows}
    lost = len(phase.received) - len(billed)
    kept = [request for request in phase.received if request.request_id in billed]
    off = replace(phase, received=kept).billed_otherwise
    return [
        measure("killed_settled_rows_changed", changed, "rows", "==", 0),
        measure("killed_requests_lost", lost, "requests", "<=", phase.cut),
        measure("killed_requests_too_many", max(0, -lost), "requests", "==", 0),
        measure("killed_tokens_off_clients", off, "tokens", "==", 0),
        *_bounds(phase, 0),
    ]


def _rows(phase: Phase) -> list[Measurement]:
    attempts = sum(request.attempts for request in phase.received)
    off = phase.billed_otherwise
    return [
        measure(f"{phase.name}_attempts", len(phase.rows), "attempts", "==", attempts),
        measure(f"{phase.name}_tokens_off_clients", off, "tokens", "==", 0),
    ]


def _bounds(phase: Phase, seen: int) -> list[Measurement]:
    """Judge what was billed for attempts that were cut off."""
    name = phase.name
    counted = sum(row.completion_tokens for row in phase.cut_rows)
    missed = phase.engine.completion - phase.booked.completion
    return [
        measure(f"{name}_tokens_below_received", max(0, seen - counted), "tokens", "==", 0),
        measure(f"{name}_tokens_over_engine", max(0, -missed), "tokens", "==", 0),
        measure(f"{name}_tokens_not_booked", max(0, missed), "tokens", "<=", phase.limit),
    ]


# Requests of each kind. Few, so that the step stays under a minute on two cores.
STREAMS, ABORTS, FALLBACKS, AFTERWARDS = 4, 3, 2, 2
MAX_TOKENS = 24
# Of streams that are cut off, at least.
STREAM_TOKENS = 96
# Pieces after which a client leaves.
LEAVES_AFTER = 3
# An engine may take this long to notice that nobody listens any more, in seconds.
NOTICES_WITHIN = 0.25
# Tokens on their way between engine, gateway and client at the moment of leaving.
ON_THE_WAY = 8
# A gateway pings its upstream as it starts and after a fault; each ping has a row, but for one
# under way when the gateway is killed. A busy engine answers some after their time.
PING_TOKENS = 1
# No engine is trusted by it, so that the low-confidence path must be taken.
_IMPOSSIBLE_CONFIDENCE = -1e-9
_SETTLES_WITHIN, _PAUSE = 10.0, 0.1
# A slow engine takes so long for the answers that clients gave up, in seconds.
_IDLE_WITHIN = 180.0

KEY = "others"
# Models of the gateway: each has a chain of its own over the one engine.
CALM, UNREACHABLE, UNSURE = ALIAS, "unreachable", "unsure"


def upstreams(server: EngineServer, price: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the upstreams of the trial's gateway; all but the dead one are the same engine."""
    return [
        server.upstream("primary", price=price),
        {
            **server.upstream("dead", connect_timeout_s=1.0, ping=False),
            "base_url": f"http://127.0.0.1:{free_port()}/v1",
        },
        server.upstream("second", price=price, ping=False),
    ]


def models() -> list[dict[str, Any]]:
    """Return the models of the trial's gateway."""
    doubt = {"min_mean_logprob": _IMPOSSIBLE_CONFIDENCE}
    return [
        {"id": CALM, "chain": ["primary"]},
        {"id": UNREACHABLE, "chain": ["dead", "second"]},
        {"id": UNSURE, "chain": ["primary", "second"], "low_confidence": doubt},
    ]


Asking = Sequence[Callable[[], Received]]


@dataclass
class Traffic:
    """A gateway over an engine, whose counters are read around each kind of request."""

    gateway: GatewayProcess
    server: EngineServer
    prompts: Iterator[Messages]
    unseen: int  # completion tokens until the engine notices that its client has left
    context_tokens: int

    @property
    def stream_tokens(self) -> int:
        """Tokens that streams which are cut off ask for."""
        return max(STREAM_TOKENS, min(2 * self.unseen, self.context_tokens // 2))

    def run(self) -> list[Measurement]:
        """Send every kind of request, and compare what the witnesses counted."""
        streams = self._phase("streams", [self._stream] * STREAMS)
        leave = partial(self._stream, self.stream_tokens, LEAVES_AFTER)
        aborted = self._phase("aborted", [leave] * ABORTS, cut=ABORTS, unseen=self.unseen)
        fell_back = [lambda: self._whole(UNREACHABLE), lambda: self._whole(UNSURE)]
        fallbacks = self._phase("fallbacks", fell_back * FALLBACKS)
        return [*exact(streams), *bounded(aborted), *exact(fallbacks), *self._kill()]

    def _kill(self) -> list[Measurement]:
        """Kill the gateway amid a stream, start it again on the same ledger, and ask on.

        The stream has no row, so all that the engine wrote for it is missing: what the client
        received, what was on its way (pieces in two sockets; text that the detokeniser held back),
        and the tokens until the engine notices. It notices when it writes a piece to a closed
        socket, at the next token; but the kernel closes the sockets of a killed process some
        milliseconds later, in which a fast engine ends the answer. So the bound is all that the
        request asked for, which no engine exceeds, and a ping under way, which has no row either.
        """
        before, unseen = rows_between(self.gateway.ledger), self.stream_tokens + PING_TOKENS
        requests = [self._cut_off, *[self._whole] * AFTERWARDS]
        phase = self._phase("killed", requests, cut=1, unseen=unseen, lost=1)
        return killed(phase, before, rows_between(self.gateway.ledger))

    def _cut_off(self) -> Received:
        """Return what a client had of its stream when the gateway was killed."""
        begun = threading.Event()
        had: list[Received] = []

        def listen(prompt: Messages) -> None:
            chunks, usage, request_id = 0, None, None
            with (
                suppress(httpx.HTTPError),
                self._open(prompt, self.stream_tokens) as (given, pieces),
            ):
                request_id = given
                for piece in pieces:
                    chunks += has_text(piece)
                    usage = _usage(piece) or usage
                    begun.set()
            had.append(Received(usage, chunks, request_id))

        client = threading.Thread(target=listen, args=(next(self.prompts),))
        client.start()
        begun.wait(_SETTLES_WITHIN)
        self.gateway.restart()
        client.join()
        return had[0]

    def _phase(
        self, name: str, requests: Asking, *, cut: int = 0, unseen: int = 0, lost: int = 0
    ) -> Phase:
        """Send requests in turn, of which some may be `lost`, and count them by all witnesses."""
        before, since = self._counters(), datetime.now(UTC)
        received = [ask() for ask in requests]
        rows = self._rows(since, len(requests) - lost)
        after = self._counters()
        engine = Tokens(after.prompt - before.prompt, after.completion - before.completion)
        own = rows_between(self.gateway.ledger, since, kinds=("ping", "warmup"))
        return Phase(name, received, rows, engine, cut, unseen, own)

    def _counters(self) -> Tokens:
        """Return the engine's counters, once no request is open and they stand still.

        An engine may write an answer that its client gave up to the end, and count it only then, as
        llama.cpp does: read before, its tokens would be those of the next phase.
        """
        deadline = time.monotonic() + _IDLE_WITHIN
        before: Tokens | None = None
        while time.monotonic() < deadline:
            found = self.server.counters()
            now = Tokens(found.prompt_tokens, found.completion_tokens)
            if now == before and not found.open_requests:
                return now
            before = now
            time.sleep(_PAUSE)
        raise RetryableError("the engine went on generating although no request was open")

    def _rows(self, since: datetime, requests: int) -> list[UsageRow]:
        """Return the ledger's rows since a moment, once so many requests have one."""
        deadline = time.monotonic() + _SETTLES_WITHIN
        while True:
            rows = rows_between(self.gateway.ledger, since)
            if len({row.request_id for row in rows}) >= requests or time.monotonic() > deadline:
                return rows
            time.sleep(_PAUSE)

    def _whole(self, model: str = CALM) -> Received:
        """Ask for a whole answer and wait for it."""
        answer = self.gateway.ask(model, next(self.prompts), max_tokens=MAX_TOKENS, key=KEY)
        usage = _usage(answer.body) if answer.ok else None
        return Received(usage, 0, answer.request_id, answer.attempts)

    def _stream(self, tokens: int = MAX_TOKENS, leave_after: int | None = None) -> Received:
        """Read a stream to its end, or leave it after its first pieces."""
        usage, chunks = None, 0
        with self._open(next(self.prompts), tokens) as (request_id, pieces):
            for piece in pieces:
                chunks += has_text(piece)
                usage = _usage(piece) or usage
                if chunks == leave_after:
                    break
        return Received(None if leave_after else usage, chunks, request_id)

    def _open(self, prompt: Messages, tokens: int) -> Any:
        extra = ENDLESS if tokens > MAX_TOKENS else None
        return self.gateway.stream(CALM, prompt, max_tokens=tokens, key=KEY, extra=extra)


def unseen_tokens(tokens_per_second: float) -> int:
    """Return the tokens that an engine may generate until it notices that its client has left."""
    return ON_THE_WAY + round(NOTICES_WITHIN * tokens_per_second)


def _usage(body: Mapping[str, Any]) -> Tokens | None:
    usage = body.get("usage")
    if not usage:
        return None
    return Tokens(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
