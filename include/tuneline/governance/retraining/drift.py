"""What a look at production starts: nothing, a report, or a backfill and a retraining.

One drift starts one retraining. After it, drift is only reported until the cool-down is over, and
a drift that began before is the same one for as long as the same model is released.
Retrainings are noted in the store, below `retraining/<model>/drift/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta

from tuneline.store import Store


@dataclass(frozen=True)
class Look:
    """What one look at production found.

    Attributes:
        drifted: True if a signal called drift.
        day: the last day that was compared.
        since: the day on which the drift began, None without one.
        summary: one sentence that names the signals.
        report: URI of the report.
        version: version of the released model, None without one.
    """

    drifted: bool
    day: date
    since: date | None
    summary: str
    report: str
    version: str | None = None


@dataclass(frozen=True)
class Decision:
    """What follows from a look.

    Attributes:
        act: True if the days are backfilled and a retraining may follow.
        why: one sentence for the run's note.
        first: first day of the backfill.
    """

    act: bool
    why: str
    first: date | None = None
    last: date | None = None

    @property
    def days(self) -> str:
        """The days of the backfill, `YYYY-MM-DD..YYYY-MM-DD`; empty if there is none."""
        return f"{self.first}..{self.last}" if self.act else ""


@dataclass(frozen=True)
class Retraining:
    """A retraining that drift started.

    Attributes:
        day: last day of the drift that was seen then.
        version: version that was released then.
    """

    day: date
    run: str
    version: str | None


def decide(
    look: Look, last: Retraining | None, *, retrain: bool, window_days: int, cool_down_days: int
) -> Decision:
    """Decide what follows from a look.

    Args:
        last: the last retraining that drift started, None for never.
        retrain: False if drift is only reported.
        window_days: days that are backfilled at most, the last ones of the drift.
        cool_down_days: days after a retraining in which drift starts no other.
    """
    if not look.drifted:
        return Decision(False, f"nothing is started: {look.summary}")
    since = look.since or look.day
    found = f"drift since {since}: {look.summary}"
    if not retrain:
        return Decision(False, f"{found}; nothing is started, since the model's file says so")
    if last is not None:
        over = last.day + timedelta(days=cool_down_days)
        started = f"{found}; nothing is started, since {last.run} was started for the drift until "
        if look.day <= over:
            return Decision(False, f"{started}{last.day} and its cool-down lasts until {over}")
        if since <= last.day and look.version == last.version:
            return Decision(
                False,
                f"{started}{last.day}, which is the same drift, and {last.version} is still "
                "released; see why it was kept, and start the next run by hand",
            )
    first = max(since, look.day - timedelta(days=window_days - 1))
    return Decision(True, f"{found}; {first} to {look.day} are backfilled", first, look.day)


def last_retraining(store: Store, name: str) -> Retraining | None:
    """Return the last retraining of a model that drift started, None for none."""
    keys = sorted(store.keys(_prefix(name)))
    if not keys:
        return None
    document = json.loads(store.get_bytes(keys[-1]))
    return Retraining(date.fromisoformat(document["day"]), document["run"], document["version"])


def note_retraining(store: Store, name: str, look: Look, run_id: str) -> None:
    """Note that the drift of a look started a retraining."""
    content = {"run": run_id, **asdict(look)}
    raw = json.dumps(content, default=str, indent=1, ensure_ascii=False).encode()
    store.put_bytes(f"{_prefix(name)}/{look.day}.json", raw)


def _prefix(name: str) -> str:
    return f"retraining/{name}/drift"
