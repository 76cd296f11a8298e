"""A phase of traffic as clients, ledger and engine counted it, and the rules that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.evidence import Measurement, measure
from tuneline.serving.gateway.ledger.database import UsageRow


@dataclass(frozen=True)
class Tokens:
    """Token counts of one witness.

    Attributes:
        prompt: prompt tokens; the engine leaves out those that it had cached.
        completion: completion tokens.
    """

    prompt: int
    completion: int

    def off(self, other: Tokens) -> int:
        """Return the tokens by which two counts differ, of prompts and completions together."""
        return abs(self.prompt - other.prompt) + abs(self.completion - other.completion)


@dataclass(frozen=True)
class Received:
    """What a client had of one request.

    Attributes:
        usage: the usage that it was told; None if it was cut off before.
        chunks: pieces of text that it got.
        request_id: the id that the response bore.
        attempts: the attempts that the response named.
    """

    usage: Tokens | None
    chunks: int = 0
    request_id: str | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Phase:
    """Requests of one kind, which ran alone.

    Attributes:
        name: the kind, in the names of measurements.
        received: what clients had of each request.
        rows: the ledger's rows since the phase began.
        engine: the engine's counters over the phase.
        cut: attempts that were cut off before their usage was known.
        unseen: completion tokens that such an attempt can cost the engine beside those that the
            gateway saw.
    """

    name: str
    received: Sequence[Received]
    rows: Sequence[UsageRow]
    engine: Tokens
    cut: int = 0
    unseen: int = 0

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
        computed = [r.prompt_tokens - r.cached_tokens for r in self.rows if not r.estimated]
        return Tokens(sum(computed), sum(row.completion_tokens for row in self.rows))

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
    received, nor more than the engine generated, and it may miss what the engine generated until
    it noticed, which is at most `cut × unseen` tokens. Where the engine was too fast for any
    attempt to be cut off, the phase shows nothing, and warns.
    """
    cut_off = sum(row.status != "ok" for row in phase.rows)
    return [
        measure(f"{phase.name}_cut_off", cut_off, "attempts", ">=", 1, on_breach="warn"),
        *_rows(phase),
        *_bounds(phase, sum(r.chunks for r in phase.received if not r.usage)),
    ]


def killed(phase: Phase, before: Sequence[UsageRow], now: Sequence[UsageRow]) -> list[Measurement]:
    """Judge a gateway that was killed amid requests and started again on the same ledger.

    Requests under way at the kill may have no row; what they cost is bounded as for others that
    were cut off.

    Args:
        phase: the requests under way at the kill, and those after the start anew.
        before: the ledger's rows at the moment of the kill.
        now: its rows at the end.
    """
    there = {(row.request_id, row.attempt): row for row in now}
    changed = sum(there.get((row.request_id, row.attempt)) != row for row in before)
    billed = {row.request_id for row in phase.rows}
    lost = len(phase.received) - len(billed)
    off = phase.billed_otherwise
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
    """Judge what was billed for attempts that were cut off.

    Args:
        phase: the phase.
        seen: pieces that clients got of answers whose usage they were not told.
    """
    name = phase.name
    counted = sum(row.completion_tokens for row in phase.cut_rows)
    missed = phase.engine.completion - phase.booked.completion
    limit = phase.cut * phase.unseen
    return [
        measure(f"{name}_tokens_below_received", max(0, seen - counted), "tokens", "==", 0),
        measure(f"{name}_tokens_over_engine", max(0, -missed), "tokens", "==", 0),
        measure(f"{name}_tokens_not_booked", max(0, missed), "tokens", "<=", limit),
    ]
