"""What is found about the hold-out besides the metric: its worst parts and its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.ledger import (
    Opened,
    choosing,
    ledger_prefix,
)
from tuneline.evaluation.holdout.slices import (
    find_slices,
    slice_measurements,
    slice_sentence,
    slices_document,
)
from tuneline.evidence import Measurement, measure
from tuneline.harness.served_models import Candidate
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Inspection:
    """Measurements, and a part of a sentence."""

    measurements: list[Measurement]
    sentence: str


def inspect(ctx: StepContext, rows: Sequence[Row], scores: Sequence[float]) -> Inspection:
    """Look for worse parts of the hold-out, and write them.

    Args:
        ctx: the step.
        rows: the hold-out rows that the candidate answered.
        scores: its score of each, from 0 to 1.
    """
    settings = ctx.config.evaluation.slices
    slices = find_slices(rows, scores, settings)
    ctx.write_json("slices.json", slices_document(slices, settings))
    return Inspection(slice_measurements(slices, settings), slice_sentence(slices))


def ledger_measurements(ctx: StepContext, opened: Opened, chosen: Candidate) -> list[Measurement]:
    """Measure earlier uses of the hold-out, and of others with the same rows; write the ledger."""
    own, inherited = opened.earlier, opened.inherited
    choices = [access for each in inherited for access in each.choices]
    document = {
        "holdout_sha256": opened.sha256,
        "prefix": ledger_prefix(opened.sha256),
        "earlier": [asdict(access) for access in own],
        "shared": [{"holdout_sha256": each.holdout, "rows": each.rows} for each in inherited],
        "earlier_on_shared_rows": [asdict(access) for access in choices],
    }
    ctx.write_json("ledger.json", document)
    scored = {access.candidate_sha256 for access in own if access.purpose == "score"}
    others = scored - {chosen.model.sha256}
    judged = sum(row.row_id in chosen.judged_on for row in opened.held)
    return [
        measure("accesses_that_chose_something", len(choosing(own)), "accesses", "<=", 0),
        measure("accesses_that_chose_on_shared_rows", len(choices), "accesses", "<=", 0),
        measure("rows_a_variant_was_chosen_on", judged, "rows", "<=", 0),
        measure(
            "earlier_scorings_of_these_bytes",
            len(opened.scored(chosen.model.sha256)),
            "accesses",
        ),
        measure("other_candidates_scored_before", len(others), "candidates"),
    ]
