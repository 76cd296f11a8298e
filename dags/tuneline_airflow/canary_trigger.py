"""The trigger that waits for the outcome of a canary; it runs in the triggerer.

It asks the store alone, so that a triggerer that dies loses nothing: the next one has the same
times and reads the same log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from tuneline.errors import RetryableError, TunelineError
from tuneline.store import open_store

if TYPE_CHECKING:
    from tuneline.governance.release.canary import CanaryState

_DECIDED = ("promoted", "withdrawn", "left")
# A client of S3 takes longer to make than to ask; all triggers of a store share one.
_open = cache(open_store)


class CanaryDecided(BaseTrigger):
    """Wait until the canary of a version is decided, or can't be any more.

    Args:
        store: URI of the store.
        begin_by: Unix time by which a follower has to have begun it.
        hours: length of the canary, hours.
        slack_seconds: time beyond its end until it counts as forgotten.
        not_before: Unix time before which it does not, for a task that is cleared later on.
        seconds: time between two looks at the store.
    """

    def __init__(
        self,
        *,
        store: str,
        name: str,
        version: str,
        begin_by: float,
        hours: float,
        slack_seconds: float,
        not_before: float,
        seconds: float,
    ) -> None:
        super().__init__()
        self.store = store
        self.name = name
        self.version = version
        self.begin_by = begin_by
        self.hours = hours
        self.slack_seconds = slack_seconds
        self.not_before = not_before
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the triggerer."""
        names = "store name version begin_by hours slack_seconds not_before seconds".split()
        path = f"{type(self).__module__}.{type(self).__name__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: the outcome, and a sentence."""
        while True:
            # The store's clients are synchronous; other triggers go on meanwhile.
            outcome, told = await asyncio.to_thread(self.look)
            if outcome is not None:
                yield TriggerEvent({"outcome": outcome, "told": told})
                return
            await asyncio.sleep(self.seconds)

    def look(self) -> tuple[str | None, str]:
        """Look at the store once; the outcome is None while there is nothing to tell."""
        # Reading releases takes imports that the DAG processor has no use for.
        from tuneline.governance.release.canary import canary_state

        try:
            state = canary_state(_open(self.store), self.name, self.version)
        except (RetryableError, OSError) as error:
            self.log.warning("the store can't be read now, looking again: %s", error)
            ends = self.begin_by + self.hours * 3600 + self.slack_seconds
            return ("unreadable" if _now() > ends else None), str(error)
        except TunelineError as error:
            return "error", str(error)
        if state.outcome in _DECIDED:
            return state.outcome, state.told
        return self._missed(state), state.told

    def _missed(self, state: CanaryState) -> str | None:
        if state.began is None:
            return "not_begun" if _now() > self.begin_by else None
        ends = (state.began + timedelta(hours=self.hours)).timestamp()
        return "overdue" if _now() > max(ends, self.not_before) + self.slack_seconds else None


def _now() -> float:
    return datetime.now(UTC).timestamp()
