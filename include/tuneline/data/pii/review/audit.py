"""The review that people were asked for in Airflow, as measurements of the final audit."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tuneline.artifacts.data import SCRUBBED
from tuneline.artifacts.pii_review import PII_SHEET
from tuneline.data.pii.review.estimate import review_measurements
from tuneline.data.pii.review.form import ASK, answered
from tuneline.evidence import Evidence, Measurement, Record, measure

if TYPE_CHECKING:
    from tuneline.step_context import StepContext


def asked_review(ctx: StepContext) -> list[Measurement]:
    """Judge what people found in the scrubbed rows since pii_scrubbing left its evidence.

    Nothing is measured if nobody was asked. That nobody has answered warns.
    """
    config = ctx.config.data
    if config.pii_review != ASK:
        return []
    sheet = PII_SHEET.read(ctx)
    review = answered(ctx.run, sheet)
    entry = ctx.entry(SCRUBBED.step)
    found = {m.name: m.value for m in entry.measurements}
    kept = int(found.get("rows_kept") or len(sheet.rows))
    measured = review_measurements(review, hits_of(entry), kept, config)
    read = measure(
        "review_rows_read", len(review.weights), "rows", ">=", len(sheet.rows), on_breach="warn"
    )
    return [m.model_copy(update={"name": f"{SCRUBBED.step}.{m.name}"}) for m in [read, *measured]]


def hits_of(entry: Evidence | Record) -> Counter[str]:
    """Return the values that scrubbing found, by entity, as its evidence states them."""
    return Counter(
        {
            one.name.removeprefix("found_"): int(one.value or 0)
            for one in entry.measurements
            if one.name.startswith("found_")
        }
    )
