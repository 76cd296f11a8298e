"""A circuit breaker: an upstream that keeps failing is left alone for a while.

Closed, everything passes. Open, nothing does, so that no request waits for a server that is known
to be broken. After a while it is half-open: one request at a time tries the upstream, and its end
closes or opens the circuit. The pattern is Nygard's ("Release It!", 2007).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from tuneline.serving.gateway.fallback_config import BreakerConfig
from tuneline.serving.gateway.outcome import Outcome

_FAILURES = frozenset(
    {
        Outcome.CONNECT_ERROR,
        Outcome.CONNECTION_LOST,
        Outcome.TIMEOUT,
        Outcome.UPSTREAM_5XX,
        Outcome.UPSTREAM_REFUSED,
        Outcome.BAD_RESPONSE,
        Outcome.DIED_MIDSTREAM,
    }
)
# These say nothing about the upstream: the client or the time budget ended them, or it is busy,
# which it says at once and which passes by itself.
_NEITHER = frozenset({Outcome.CLIENT_ABORTED, Outcome.BUDGET_SPENT, Outcome.UPSTREAM_BUSY})


class Circuit(StrEnum):
    """The state of a circuit."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """The circuit of one upstream; used in the event loop only.

    Args:
        config: its limits.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._in_a_row = 0
        # Time and whether it failed, of each attempt within the window.
        self._recent: deque[tuple[float, bool]] = deque()
        self._failed_recently = 0
        self._opened_at: float | None = None
        self._trial = False

    @property
    def state(self) -> Circuit:
        """The state at this moment."""
        if self._opened_at is None:
            return Circuit.CLOSED
        waited = self._clock() - self._opened_at
        return Circuit.HALF_OPEN if waited >= self._config.open_s else Circuit.OPEN

    @property
    def passes(self) -> bool:
        """Whether a request may be sent; `begin` has to follow."""
        state = self.state
        return state is Circuit.CLOSED or (state is Circuit.HALF_OPEN and not self._trial)

    def begin(self) -> bool:
        """Note that a request is sent; True if it is the trial of a half-open circuit."""
        if self.state is Circuit.CLOSED:
            return False
        self._trial = True
        return True

    def retry_after_s(self) -> float:
        """Return the seconds until a request may be sent again."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._config.open_s - (self._clock() - self._opened_at))

    def end(self, outcome: Outcome, *, trial: bool) -> None:
        """Note the end of a request.

        Args:
            outcome: how it ended.
            trial: what `begin` returned.
        """
        if trial:
            self._trial = False
        if outcome in _NEITHER:
            return
        failed = outcome in _FAILURES
        if self._opened_at is not None:
            # Requests that were sent before the circuit opened decide nothing any more.
            if trial:
                self._open() if failed else self._close()
            return
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._remember(failed)
        if failed and (self._in_a_row >= self._config.failures or self._share_is_reached()):
            self._open()

    def _remember(self, failed: bool) -> None:
        now = self._clock()
        self._recent.append((now, failed))
        self._failed_recently += failed
        while self._recent[0][0] < now - self._config.window_s:
            self._failed_recently -= self._recent.popleft()[1]

    def _share_is_reached(self) -> bool:
        count = len(self._recent)
        enough = count >= self._config.window_requests
        return enough and self._failed_recently >= self._config.error_share * count

    def _open(self) -> None:
        self._opened_at = self._clock()

    def _close(self) -> None:
        self._opened_at = None
        self._in_a_row = self._failed_recently = 0
        self._recent.clear()
