"""A release that can't be served: why, and when it is tried again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# It is tried again after this long, then after twice as long, and so on.
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 300.0


@dataclass
class Failure:
    """The failures of one unit in a row.

    Attributes:
        reason: why the last try failed.
        count: number of tries that failed.
        since: time of the last one, on the clock that measures durations.
    """

    reason: str = ""
    count: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """True if it is time for another try."""
        wait = min(_RETRY_SECONDS * 2 ** (self.count - 1), _LONGEST_RETRY_SECONDS)
        return self.count == 0 or time.monotonic() - self.since >= wait

    def note(self, reason: str) -> bool:
        """Note a failed try; return False for what is found again before another one was due."""
        if not self.over:
            return False
        self.reason, self.count, self.since = reason, self.count + 1, time.monotonic()
        return True
