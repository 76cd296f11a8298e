"""What is known of an upstream: when it last proved that it writes tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tuneline.serving.gateway.outcome import Outcome


@dataclass
class UpstreamHealth:
    """Written by pings and by real traffic, read by the probes; event loop only.

    A refused connection or an error is believed at once. A slow answer is not: an
    engine that is busy looks the same as one that hangs, until too long passes
    without a token.
    """

    listed: bool = False
    warm: bool = False
    error: str | None = "not checked yet"
    last_proof: float | None = None
    # Set when a request met a fault, so that the next ping does not wait its turn.
    suspect: asyncio.Event = field(default_factory=asyncio.Event)

    def proved(self) -> None:
        """A token came."""
        self.last_proof = time.monotonic()
        self.error = None

    def failed(self, why: str) -> None:
        """It cannot answer, beyond doubt."""
        self.error = why

    def restarted(self) -> None:
        """Nothing listens: whatever comes next starts cold."""
        self.listed = self.warm = False

    def met(self, outcome: Outcome, detail: str) -> None:
        """A request ended in a fault."""
        if outcome is Outcome.CONNECT_ERROR:
            self.failed(detail)
            self.restarted()
        self.suspect.set()

    def proof_age(self) -> float:
        """Seconds since the last token; infinite before the first."""
        return float("inf") if self.last_proof is None else time.monotonic() - self.last_proof

    def why_not_ready(self, stale_after_s: float) -> str | None:
        """Why it should get no traffic, or None."""
        if self.error is not None:
            return self.error
        if not self.listed:
            return "its model list has not been read"
        if not self.warm:
            return "the warm-up has not finished"
        if self.proof_age() > stale_after_s:
            return f"no token for {self.proof_age():.0f} s"
        return None
