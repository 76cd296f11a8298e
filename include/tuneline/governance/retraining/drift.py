"""What a look at production starts: nothing, a report, or a backfill and a retraining.

One drift starts one retraining: it is only reported until the cool-down is over, and a drift that
began before is the same one for as long as the same model is released.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta

from tuneline.evidence import Verdict
from tuneline.store import Store


@dataclass(frozen=True)
class Look:
    """What one look at production found."""

    drifted: bool
    day: date  # the last one that was compared
    since: date | None
    summary: str
    report: str
    version: str | None = None
    verdict: Verdict = Verdict.PASS  # inconclusive: nothing was compared; fail: drift, or too long


@dataclass(frozen=True)
class Decision:
    """What follows from a look."""

    act: bool
    why: str
    days: str = ""  # of the backfill, `YYYY-MM-DD..YYYY-MM-DD`; empty if there is none


@dataclass(frozen=True)
class Retraining:
    """A retraining that drift started."""

    day: date
    run: str
    version: str | None


def decide(
    look: Look, last: Retraining | None, *, retrain: bool, window_days: int, cool_down_days: int
) -> Decision:
    """Decide what follows from a look.

    A backfill has at most the last `window_days` of the drift; in `cool_down_days` after a
    retraining drift starts no other.
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
    backfilled = f"{found}; {first} to {look.day} are backfilled"
    return Decision(True, backfilled, f"{first}..{look.day}")


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
