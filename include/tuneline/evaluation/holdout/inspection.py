"""What is found about the hold-out beside the metric: its worst parts, paraphrases, its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.ledger import (
    Opened,
    choosing,
    history_of,
    ledger_prefix,
)
from tuneline.evaluation.holdout.paraphrases import (
    find_paraphrases,
    paraphrase_measurements,
    paraphrases_document,
    without_paraphrases,
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


def inspect(
    ctx: StepContext, opened: Opened, rows: Sequence[Row], scores: Sequence[float]
) -> Inspection:
    """Look for worse parts of the hold-out and for paraphrases of training rows; write both.

    Args:
        ctx: the step.
        opened: the hold-out and the rows of training.
        rows: the hold-out rows that the candidate answered.
        scores: its score of each, from 0 to 1.
    """
    settings = ctx.config.evaluation
    slices = find_slices(rows, scores, settings.slices)
    ctx.write_json("slices.json", slices_document(slices, settings.slices))
    ctx.log(f"comparing {len(opened.held)} hold-out rows with the training rows for paraphrases")
    alike = find_paraphrases(opened.held, opened.seen)
    ctx.write_json("paraphrases.json", paraphrases_document(alike))
    return Inspection(
        [
            *slice_measurements(slices, settings.slices),
            *paraphrase_measurements(alike, settings.paraphrases),
            *without_paraphrases(alike, rows, scores),
        ],
        slice_sentence(slices),
    )


def ledger_measurements(ctx: StepContext, opened: Opened, chosen: Candidate) -> list[Measurement]:
    """Measure earlier uses of the hold-out, and of others with the same rows; write the ledger."""
    own, shared = opened.earlier, opened.shared
    history = history_of(ctx.run.store, shared.found)
    document = {
        "holdout_sha256": opened.sha256,
        "prefix": ledger_prefix(opened.sha256),
        "earlier": [asdict(access) for access in own],
        "shared": [
            {"holdout_sha256": each.holdout, "rows": sorted(each.rows)} for each in shared.found
        ],
        "earlier_on_shared_rows": [asdict(access) for access in history],
    }
    ctx.write_json("ledger.json", document)
    scored = {access.candidate_sha256 for access in own if access.purpose == "score"}
    elsewhere = {access.candidate_sha256 for access in history if access.purpose == "score"}
    judged = sum(row.row_id in chosen.judged_on for row in opened.held)
    itself = {chosen.model.sha256}
    return [
        measure("accesses_that_chose_something", len(choosing(own)), "accesses", "<=", 0),
        measure("accesses_that_chose_on_shared_rows", len(choosing(history)), "accesses", "<=", 0),
        measure("rows_a_variant_was_chosen_on", judged, "rows", "<=", 0),
        measure(
            "earlier_scorings_of_these_bytes",
            len(opened.scored(chosen.model.sha256)),
            "accesses",
        ),
        measure("other_candidates_scored_before", len(scored - itself), "candidates"),
        measure("rows_used_in_other_holdouts", len(shared.rows), "rows"),
        measure("candidates_scored_on_shared_rows", len(elsewhere - itself), "candidates"),
        measure("older_holdouts_not_compared", shared.older, "holdouts"),
    ]
