"""The ways in which an attempt at an upstream ends, and the faults that cause a fallback."""

from __future__ import annotations

from enum import StrEnum


class AttemptStatus(StrEnum):
    """The end of one attempt, as ledger, metrics and response headers name it."""

    OK = "ok"
    # The answer came, but its tokens were improbable; it is billed, not trusted.
    LOW_CONFIDENCE = "low_confidence"
    CONNECT_ERROR = "connect_error"
    # The connection broke after the request was sent and before an answer was complete.
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    UPSTREAM_5XX = "upstream_5xx"
    UPSTREAM_BUSY = "upstream_busy"
    # 401, 403, 404, a redirect: our configuration is wrong, not the client's request.
    UPSTREAM_REFUSED = "upstream_refused"
    BAD_RESPONSE = "bad_response"
    # The prompt does not fit its context; an upstream with a longer one may answer.
    CONTEXT_OVERFLOW = "context_overflow"
    # A schema was asked for, and the answer is not what it says; it is billed, not trusted.
    INVALID_JSON = "invalid_json"
    # The time for the whole request ran out, not that of the attempt.
    BUDGET_SPENT = "budget_spent"
    # Nothing was sent: its pings show that it cannot answer, or its circuit is open.
    NOT_READY = "not_ready"
    CIRCUIT_OPEN = "circuit_open"
    # The upstream found the client's request wrong; another upstream would too.
    CLIENT_ERROR = "client_error"
    CLIENT_ABORTED = "client_aborted"
    # After the first byte had reached the client: too late for a fallback.
    DIED_MIDSTREAM = "died_midstream"


# Attempts in which the engine never read the prompt; they cost no tokens.
WITHOUT_TOKENS = frozenset(
    {
        AttemptStatus.CONNECT_ERROR,
        AttemptStatus.UPSTREAM_5XX,
        AttemptStatus.UPSTREAM_BUSY,
        AttemptStatus.UPSTREAM_REFUSED,
        AttemptStatus.CONTEXT_OVERFLOW,
        AttemptStatus.CLIENT_ERROR,
    }
)


class UpstreamFault(Exception):
    """A failure of one upstream that the next one may not share; the detail is without secrets."""

    def __init__(self, outcome: AttemptStatus, detail: str, status: int | None = None) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome = outcome
        self.detail = detail
        self.status = status


class ClientFault(Exception):
    """A request that an upstream found wrong (a 4xx), with its OpenAI-style `error` object."""

    def __init__(self, status: int, error: dict[str, object]) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.error = error
