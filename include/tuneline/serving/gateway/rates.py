"""The last minute of a key: how many requests it made, and how many tokens they took."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass
class Request:
    """A request of the last minute.

    Attributes:
        time: when it was admitted, on the clock of the `Minute`.
        tokens: what it took, or may take while it is under way.
    """

    time: float
    tokens: int


class Minute:
    """The requests of a key in the last 60 seconds, a window that slides.

    Unlike a bucket that refills, it never lets twice the limit pass within one minute.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._tokens = 0

    def add(self, request: Request) -> None:
        """Take a request."""
        self._requests.append(request)
        self._tokens += request.tokens

    def change(self, request: Request, tokens: int) -> None:
        """Set the tokens of a request, once they are known."""
        if self._requests and self._requests[0].time <= request.time:
            self._tokens += tokens - request.tokens
        request.tokens = tokens

    def wait_for_request(self, limit: int, now: float) -> float:
        """Return the seconds until one more request is within the limit; 0 if it is now."""
        self._forget(now)
        surplus = len(self._requests) - limit
        return 0.0 if surplus < 0 else _until_forgotten(self._requests[surplus], now)

    def wait_for_tokens(self, limit: int, now: float) -> float:
        """Return the seconds until the tokens of the minute are below the limit; 0 if they are."""
        self._forget(now)
        taken = self._tokens
        if taken < limit:
            return 0.0
        for request in self._requests:
            taken -= request.tokens
            if taken < limit:
                return _until_forgotten(request, now)
        return MINUTE_S

    def _forget(self, now: float) -> None:
        while self._requests and self._requests[0].time <= now - MINUTE_S:
            self._tokens -= self._requests.popleft().tokens


def _until_forgotten(request: Request, now: float) -> float:
    """Return the seconds until a request is no longer one of the last minute."""
    wait = request.time + MINUTE_S - now
    # Rounding may leave it a hair too short.
    while request.time > now + wait - MINUTE_S:
        wait += math.ulp(now + wait)
    return wait


def whole_seconds(wait: float) -> int:
    """Return a wait as `Retry-After` states it: whole seconds, at least one."""
    return max(1, math.ceil(wait))
