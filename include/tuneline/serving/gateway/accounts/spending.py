"""What the keys have spent, as the ledger says: read again and again, with alarms near a budget.

A gateway that was killed begins with the right sums, and gateways on one database see what the
others have written. `admission` adds what is under way, or not written yet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from sqlalchemy import Engine, select

from tuneline.errors import first_line
from tuneline.serving.gateway.accounts.keys import Budget, KeyRecord
from tuneline.serving.gateway.ledger.database import (
    SPENDING,
    LedgerLocation,
    explained,
    periods,
    reader,
    url_of,
)
from tuneline.serving.gateway.metrics import Metrics

log = logging.getLogger("tuneline.gateway")

_LOOK_S = 0.25
# A reading that a write of this gateway fell into is repeated so often, after a pause.
_READINGS = 5
_PAUSE_S = 0.01
_CLOSE_TIMEOUT_S = 5.0
# More names than this in one query gain nothing over reading all.
_MANY_KEYS = 500
# Shares of a budget that are reported, the highest first.
ALARM_SHARES = (1.0, 0.8)


class Spent(NamedTuple):
    """Tokens and money of a key in a period."""

    tokens: int = 0
    cost: float = 0.0

    def of(self, budget: Budget) -> float:
        """Return the amount in the unit of a budget."""
        return self.tokens if budget.unit == "tokens" else self.cost


# By period and key.
Sums: TypeAlias = Mapping[tuple[str, str], Spent]


@dataclass(frozen=True)
class View:
    """Sums as they were read, when so many of the gateway's own attempts were surely written."""

    sums: Sums
    written: int


class SpendingReader:
    """A thread that reads the sums of the keys that have a budget.

    While the ledger can't be read the last view holds; the gateway's own requests since then are
    not forgotten, since `View.written` stands still too. `progress` returns how many attempts
    this gateway has begun to write, and how many it has written.

    Raises:
        UserError: if the sums can't be read; the first request is held against them already.
        RetryableError: if a database server cannot be reached.
    """

    def __init__(
        self,
        place: LedgerLocation,
        *,
        currency: str,
        grants: Callable[[], list[KeyRecord]],
        progress: Callable[[], tuple[int, int]],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine: Engine = reader(url_of(place))
        self.currency = currency
        self._grants = grants
        self._progress = progress
        self._metrics = metrics
        self._clock = clock
        self._reported: dict[tuple[str, str, str], float] = {}
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="budgets", daemon=True)
        self.view = View({}, 0)
        with explained(url_of(place), "read"):
            self.look()

    def start(self) -> None:
        """Begin to read them again and again."""
        self._thread.start()

    def close(self) -> None:
        """Stop to read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)
        self._engine.dispose()

    def look(self) -> None:
        """Read the sums now, and tell which budgets are nearly or wholly spent."""
        budgeted = {grant.name: grant.limits for grant in self._grants() if grant.limits.budgets}
        now = periods(self._clock())
        for _ in range(_READINGS):
            begun, written = self._progress()
            sums = self._read(now, budgeted.keys()) if budgeted else {}
            # What is written meanwhile may be in the sums, and would count as under way as well.
            if not budgeted or begun == written == self._progress()[0]:
                break
            time.sleep(_PAUSE_S)
        self.view = View(sums, written)
        for (period, key), spent in sums.items():
            for budget in budgeted[key].budgets if key in budgeted else ():
                if period == now[budget.period == "month"]:
                    self._report(key, budget, period, spent.of(budget))

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self.look()
            except Exception as error:  # whatever a driver raises, the last sums hold
                self._metrics.budget_read_failures.inc()
                if not self._failing:
                    log.error("budgets: the ledger's sums cannot be read: %s", first_line(error))
                self._failing = True
            else:
                self._failing = False

    def _read(self, now: Collection[str], keys: Collection[str]) -> Sums:
        query = select(SPENDING).where(SPENDING.c.period.in_(now))
        if len(keys) <= _MANY_KEYS:
            query = query.where(SPENDING.c.key.in_(keys))
        sums: dict[tuple[str, str], Spent] = {}
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                known = sums.get((row.period, row.key), Spent())
                # Money in another currency can't be held against the budget; its tokens can.
                cost = row.cost if row.currency == self.currency else 0.0
                sums[row.period, row.key] = Spent(known.tokens + row.tokens, known.cost + cost)
        return sums

    def _report(self, key: str, budget: Budget, period: str, spent: float) -> None:
        place = (key, budget.name, period)
        reached = next((s for s in ALARM_SHARES if spent >= s * budget.amount), 0.0)
        if reached <= self._reported.get(place, 0.0):
            return
        if place not in self._reported:
            # Those of earlier periods are not needed any more.
            self._reported = {p: s for p, s in self._reported.items() if p[:2] != place[:2]}
        self._reported[place] = reached
        percent = f"{reached:.0%}".rstrip("%")
        self._metrics.budget_alarms.labels(budget.name, percent).inc()
        unit = "tokens" if budget.unit == "tokens" else self.currency
        log.warning(
            "budget: key %s has spent %s %% of %s in %s (%g of %g %s)",
            key,
            percent,
            budget.name,
            period,
            spent,
            budget.amount,
            unit,
        )
