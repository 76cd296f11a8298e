"""The clients of the trial: calm ones, streams, those that leave, and a gateway that is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tuneline.errors import RetryableError
from tuneline.governance.costs.phase import Phase, Received, Tokens
from tuneline.harness.served_models import ALIAS
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.engines.engine_server import EngineServer
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.gateway.usage import rows_between

# Requests of each kind. Few, so that the step stays under a minute on two cores.
STREAMS, ABORTS, FALLBACKS, TIMEOUTS, RETRIES, UNDER_WAY = 4, 3, 2, 2, 2, 2
MAX_TOKENS = 24
# Long enough that an engine which generates on after its client has left is found out.
LONG_TOKENS = 96
# Pieces after which a client leaves.
LEAVES_AFTER = 3
# An engine may take this long to notice that nobody listens any more, in seconds.
NOTICES_WITHIN = 0.25
# Tokens on their way between engine, gateway and client at the moment of leaving.
ON_THE_WAY = 8
# A patience in which no answer of LONG_TOKENS comes, in seconds.
IMPATIENT = 0.02
_SETTLES_WITHIN = 10.0
_PAUSE = 0.1

# Models of the gateway: each has a chain of its own over the one engine.
CALM, UNREACHABLE, UNSURE, HASTY = ALIAS, "unreachable", "unsure", "hasty"


@dataclass
class Trial:
    """A gateway over an engine, whose counters are read around each phase.

    Attributes:
        gateway: the running gateway.
        server: the running engine.
        prompts: prompts, of which each request takes the next one.
        most: completion tokens that the engine may generate after a client has left.
    """

    gateway: GatewayProcess
    server: EngineServer
    prompts: Iterator[Messages]
    most: int = LONG_TOKENS

    def counters(self) -> Tokens:
        """Return the engine's counters, once they stand still."""
        deadline = time.monotonic() + _SETTLES_WITHIN
        before: Tokens | None = None
        while time.monotonic() < deadline:
            found = self.server.counters()
            now = Tokens(found.prompt_tokens, found.completion_tokens)
            if now == before:
                return now
            before = now
            time.sleep(_PAUSE)
        raise RetryableError("the engine went on generating although nobody asks it")

    def phase(
        self,
        name: str,
        ask: Callable[[], list[Received]],
        *,
        under_way: int = 0,
        most: int = 0,
    ) -> Phase:
        """Run requests of one kind alone, and count them by all three witnesses.

        Args:
            name: the kind.
            ask: function that sends the requests.
            under_way: attempts that are cut off.
            most: completion tokens that each of them can cost unseen.
        """
        before, since = self.counters(), time.time()
        received = ask()
        engine = self.counters() - before
        rows = self._settled(since, len(received))
        return Phase(name, received, rows, engine, under_way, most)

    def _settled(self, since: float, requests: int) -> list:
        """Return the ledger's rows since a moment, once all requests have one."""
        deadline = time.monotonic() + _SETTLES_WITHIN
        while True:
            rows = rows_between(self.gateway.ledger, since)
            if len({row.request_id for row in rows}) >= requests or time.monotonic() > deadline:
                return rows
            time.sleep(_PAUSE)

    def whole(self, model: str, tokens: int = MAX_TOKENS, key: str = "others") -> Received:
        """Ask for a whole answer."""
        answer = self.gateway.chat(model, next(self.prompts), max_tokens=tokens, key=key)
        usage = answer.body.get("usage", {})
        if not answer.ok:
            return Received(None, answered=False)
        return Received(Tokens(usage["prompt_tokens"], usage["completion_tokens"]))
