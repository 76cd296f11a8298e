"""The health of an upstream: when it last proved that it writes tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tuneline.serving.gateway.outcome import Outcome

_UNKNOWN = "not checked yet"


@dataclass
class UpstreamHealth:
    """The last known state of an upstream; used in the event loop only.

    Pings and real traffic write it, the probes read it. A refused connection or an error counts
    at once. A slow answer does not: a busy engine looks like one that hangs, until too long
    passes without a token.
    """

    listed: bool = False
    warm: bool = False
    # Whether pings carry the system turn of its prompts.
    keeps_prefix: bool = False
    error: str | None = _UNKNOWN
    last_proof: float | None = None
    # Set when a request met a fault, so that the next ping does not wait its turn.
    suspect: asyncio.Event = field(default_factory=asyncio.Event)

    def proved(self) -> None:
        """Note a token."""
        self.last_proof = time.monotonic()
        self.error = None

    def failed(self, why: str) -> None:
        """Note that it cannot answer, beyond doubt."""
        self.error = why

    def restarted(self) -> None:
        """Note that nothing listens: the next server starts cold."""
        self.listed = self.warm = False

    def met(self, outcome: Outcome, detail: str) -> None:
        """Note a request that ended in a fault."""
        if outcome is Outcome.CONNECT_ERROR:
            self.failed(detail)
            self.restarted()
        self.suspect.set()

    def proof_age(self) -> float:
        """Return the seconds since the last token; infinite before the first."""
        return float("inf") if self.last_proof is None else time.monotonic() - self.last_proof

    def is_out(self, stale_after_s: float) -> bool:
        """Return True if it is known not to be ready; before the first check nothing is known."""
        return self.error != _UNKNOWN and self.why_not_ready(stale_after_s) is not None

    def why_not_ready(self, stale_after_s: float) -> str | None:
        """Return why it should get no traffic, None if it is ready."""
        if self.error is not None:
            return self.error
        if not self.listed:
            return "its model list has not been read"
        if not self.warm:
            return "the warm-up has not finished"
        if self.proof_age() > stale_after_s:
            return f"no token for {self.proof_age():.0f} s"
        return None
