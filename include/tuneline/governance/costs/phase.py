"""A phase of traffic as clients, ledger and engine counted it, and the rules that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneline.evidence import Measurement, measure
from tuneline.serving.gateway.ledger import UsageRow

# Attempts that no client waited for, or that the gateway left; their tokens are counted, not told.
_COUNTED = "estimated"


@dataclass(frozen=True)
class Tokens:
    """Token counts of one witness.

    Attributes:
        prompt: prompt tokens; the engine leaves out those that it had cached.
        completion: completion tokens.
    """

    prompt: int
    completion: int

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


@dataclass(frozen=True)
class Received:
    """What a client had of one request.

    Attributes:
        usage: the usage that it was told, None without any.
        chunks: pieces of text that it got.
        answered: whether the answer came whole.
    """

    usage: Tokens | None
    chunks: int = 0
    answered: bool = True


@dataclass(frozen=True)
class Phase:
    """Requests of one kind, which ran alone.

    Attributes:
        name: the kind, in the names of measurements.
        received: what clients had of each request, in the order in which they were sent.
        rows: the ledger's rows of the requests.
        engine: the engine's counters over the phase.
        under_way: attempts that were cut off before their usage was known.
        most: completion tokens that such an attempt can cost the engine unseen.
    """

    name: str
    received: Sequence[Received]
    rows: Sequence[UsageRow]
    engine: Tokens
    under_way: int = 0
    most: int = 0
    settled: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    @property
    def told(self) -> Tokens:
        """Usage that clients were told."""
        usages = [request.usage for request in self.received if request.usage]
        return Tokens(sum(u.prompt for u in usages), sum(u.completion for u in usages))

    @property
    def booked(self) -> Tokens:
        """Tokens in the ledger; of the prompt those that the engine had not cached."""
        exact = [row for row in self.rows if not row.estimated]
        return Tokens(
            sum(row.prompt_tokens - row.cached_tokens for row in exact),
            sum(row.completion_tokens for row in self.rows),
        )

    @property
    def served(self) -> Tokens:
        """Tokens of the attempts whose answers went to clients whole."""
        rows = [row for row in self.rows if row.served and not row.estimated]
        prompt = sum(row.prompt_tokens for row in rows)
        return Tokens(prompt, sum(row.completion_tokens for row in rows))


def exact(phase: Phase, attempts: int) -> list[Measurement]:
    """Judge a phase in which every attempt ended with a usage: all three must agree.

    Args:
        phase: the phase.
        attempts: attempts that its requests have to leave in the ledger.
    """
    off_clients = _distance(phase.told, phase.served)
    return [
        measure(f"{phase.name}_attempts", len(phase.rows), "attempts", "==", attempts),
        measure(f"{phase.name}_tokens_off_clients", off_clients, "tokens", "==", 0),
        measure(
            f"{phase.name}_tokens_off_engine",
            _distance(phase.booked, phase.engine),
            "tokens",
            "==",
            0,
        ),
    ]


def bounded(phase: Phase, attempts: int) -> list[Measurement]:
    """Judge a phase with attempts that were cut off: what nobody was told is bounded.

    The ledger must hold a row for each attempt, never bill an aborted answer below what its
    client received, never more than the engine generated, and miss no more than the engine can
    have generated until it noticed.

    Args:
        phase: the phase.
        attempts: attempts that its requests have to leave in the ledger.
    """
    name = phase.name
    cut = [row for row in phase.rows if row.estimated or not row.completion_tokens]
    seen = sum(request.chunks for request in phase.received if not request.answered)
    below = max(0, seen - sum(row.completion_tokens for row in cut))
    missed = phase.engine.completion - phase.booked.completion
    return [
        measure(f"{name}_attempts", len(phase.rows), "attempts", "==", attempts),
        measure(
            f"{name}_tokens_off_clients",
            _distance(phase.told, phase.served),
            "tokens",
            "==",
            0,
        ),
        measure(f"{name}_tokens_below_received", below, "tokens", "==", 0),
        measure(f"{name}_tokens_over_engine", max(0, -missed), "tokens", "==", 0),
        measure(
            f"{name}_tokens_not_booked",
            max(0, missed),
            "tokens",
            "<=",
            phase.under_way * phase.most,
        ),
    ]


def killed(phase: Phase) -> list[Measurement]:
    """Judge a gateway that was killed amid requests and started again on the same ledger.

    Args:
        phase: the phase; `settled` are the rows that were in the ledger before the kill, and the
            requests after the start anew are the last of `received`.
    """
    kept = {(row.request_id, row.attempt) for row in phase.rows}
    lost = phase.settled - kept
    after = [row for row in phase.rows if (row.request_id, row.attempt) not in phase.settled]
    whole = [row for row in after if row.status == "ok"]
    answered = sum(request.answered for request in phase.received)
    new = Phase(phase.name, phase.received, after, phase.engine)
    missed = phase.engine.completion - new.booked.completion
    return [
        measure("killed_settled_rows_lost", len(lost), "rows", "==", 0),
        measure("killed_answers_booked_again", len(whole) - answered, "rows", "==", 0),
        measure(
            "killed_tokens_off_clients", _distance(new.told, new.served), "tokens", "==", 0
        ),
        measure("killed_requests_lost", phase.under_way - (len(after) - len(whole)), "requests"),
        measure(
            "killed_tokens_not_booked",
            missed,
            "tokens",
            "<=",
            phase.under_way * phase.most,
        ),
        measure("killed_tokens_over_engine", max(0, -missed), "tokens", "==", 0),
    ]


def _distance(one: Tokens, other: Tokens) -> int:
    """Return the tokens by which two counts differ, of prompts and completions together."""
    return abs(one.prompt - other.prompt) + abs(one.completion - other.completion)
