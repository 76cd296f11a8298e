"""The cost of a month's automatic trainings, those that no person started."""

from __future__ import annotations

import json
from datetime import date

from tuneline.errors import TunelineError
from tuneline.run import Run
from tuneline.store import Store


def spent(store: Store, name: str, month: date) -> float:
    """Return the cost of a model's nightly and drift-started trainings of a calendar month."""
    prefix = f"{month:%Y-%m}"
    runs = set()
    for key in store.keys(f"retraining/{name}"):
        document = json.loads(store.get_bytes(key))
        # What was tried has the time of its start, a drift the day that was seen.
        if str(document.get("at") or document.get("day", "")).startswith(prefix):
            runs.add(str(document["run"]))
    return sum(_cost(store, run) for run in sorted(runs))


def over_budget(store: Store, name: str, today: date, budget: float | None) -> str | None:
    """Return the sentence that says that the month's budget is spent; None if it is not."""
    if budget is None:
        return None
    cost = spent(store, name, today)
    if cost < budget:
        return None
    return (
        f"the budget of {today:%B} is spent: its trainings cost {cost:.4g}, "
        f"budget.training_per_month is {budget:g}"
    )


def _cost(store: Store, run_id: str) -> float:
    try:
        record = Run.open(store.uri_of(f"runs/{run_id}")).entry("train")
    except TunelineError:
        return 0.0
    found = [m.value for m in record.measurements if m.name == "cost"]
    return float(found[0]) if found and isinstance(found[0], int | float) else 0.0
