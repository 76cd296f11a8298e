"""pii_scrubbing: surrogates replace personal data and secrets, and the leak rate is measured.

A row in which something is found again, in which a replaced value stands still, or whose answer no
longer agrees with the turns before it, is rejected.
Canaries, made-up values in rows of the dataset, take the same path: the upper end of what they say
is left per 1,000 rows decides the verdict. A person's review is a second estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import tee
from math import inf
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.answers import PII_SHEET
from tuneline.artifacts.data import AUDIT, REJECTED, ROWS
from tuneline.config import DataConfig
from tuneline.data.engine import engine_of
from tuneline.data.near_duplicates.alike import write_alike
from tuneline.data.pii.find.entities import uncovered_languages
from tuneline.data.pii.find.models import describe_models
from tuneline.data.pii.find.texts import shared_parts
from tuneline.data.pii.measure import leak_estimate as leaks
from tuneline.data.pii.replace.scrubber import Scrubbed, Scrubber, make_scrubber
from tuneline.data.pii.review import review as reviews
from tuneline.data.tables.removed_rows import conclude
from tuneline.data.tables.rows import (
    ROW_COLUMNS,
    Row,
    StoredRows,
    TableWriter,
    read_rows,
    rows_before,
    scrubbed,
    write_audit,
    write_decisions,
)
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.machine.workers import HERE, Engine, worker_count
from tuneline.statistics import share_of

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

CANARIES = "canaries.parquet"
# The planted turns hold other people's words, so those that leaked lie in quarantine.
LEAKED_CANARIES = "quarantine/leaked_canaries.parquet"
REVIEW = "review.parquet"
# The shared texts of a dataset are learnt from as many rows at the most.
LEARNT_ROWS = 1 << 15
# Rows with hits that are worth the start of processes, each of which loads the model.
LEAST_ROWS = 600
# A row that keeps a value is rejected; if more than this share is shown to (by the lower end of
# the interval), it is a fault of the surrogates.
MAX_VALUES_LEFT = 0.01


def reason_to_reject(result: Scrubbed) -> str | None:
    """Return the reason for which a row is rejected, None if it stays."""
    if result.refused:
        return f"pii_refused: it holds {', '.join(result.refused)}, see data.pii_actions"
    if left := result.residual + result.left:
        return f"residual_pii: {left} hits are left after scrubbing"
    if result.torn:
        return f"copy_torn: {result.torn} words of answers no longer agree with the turns before"
    return None


def _row_measurements(results: Sequence[Scrubbed], kept: int, gone: int) -> list[Measurement]:
    """Return the numbers of rows, as they were written, and of hits."""
    hits = _hits(results)
    staying = [result for result in results if reason_to_reject(result) is None]
    changed = sum(bool(result.hits) for result in results)
    left = share_of(sum(r.left > 0 for r in results if r.hits), max(changed, 1))
    return [
        measure("rows_in", len(results), "rows"),
        measure("rows_kept", kept, "rows", ">=", 1),
        measure("rows_lost", len(results) - kept - gone, "rows", "==", 0),
        measure("rows_changed", changed, "rows"),
        measure("rows_rejected", gone, "rows"),
        measure("rows_refused", sum(bool(r.refused) for r in results), "rows"),
        *(measure(f"found_{entity}", hits[entity], "hits") for entity in sorted(hits)),
        measure("residual_pattern_hits", sum(r.residual for r in staying), "hits", "==", 0),
        measure("rows_torn", sum(r.torn > 0 for r in results), "rows"),
        measure("torn_copies", sum(r.torn for r in staying), "copies", "==", 0),
        measure("rows_with_values_left", left.value, "share"),
        measure("rows_with_values_left_at_least", left.lower, "share", "<=", MAX_VALUES_LEFT),
    ]


def _hits(results: Sequence[Scrubbed]) -> Counter[str]:
    return sum((r.hits for r in results if r.hits), Counter())


def _coverage_measurements(
    config: DataConfig, results: Sequence[Scrubbed], ignored: Sequence[str]
) -> list[Measurement]:
    """Return the profiles, languages and models in force, and the share of undeclared languages."""
    models = [
        measure(f"model_{code}", named, "text") for code, named in describe_models(config).items()
    ]
    if config.pii_models:
        models.append(measure("model_labels_ignored", "+".join(ignored) or "none", "text"))
    return [
        measure("profiles", "+".join(sorted(config.pii_profile)), "text"),
        measure("languages", "+".join(sorted(config.languages)), "text"),
        *models,
        measure(
            "uncovered_languages",
            len(uncovered_languages(config)),
            "languages",
            "==",
            0,
            on_breach=config.undeclared_language_breach,
        ),
        measure(
            "undeclared_language_share",
            _foreign(results).total() / len(results),
            "share",
            "<=",
            config.max_undeclared_language_share,
            on_breach=config.undeclared_language_breach,
        ),
    ]


def _foreign(results: Sequence[Scrubbed]) -> Counter[str]:
    return Counter(r.foreign for r in results if r.foreign is not None)


def _summary(
    config: DataConfig,
    results: Sequence[Scrubbed],
    trial: leaks.Trial,
    left: Sequence[Measurement],
    review: reviews.PiiReview | None,
) -> str:
    summary = (
        f"{_hits(results).total()} pieces of personal data found in "
        f"{sum(bool(r.hits) for r in results)} of {len(results)} rows "
        f"(profile {'+'.join(sorted(config.pii_profile)).upper()}); of {len(trial.canaries)} "
        f"canaries {sum(trial.leaked)} leaked. {_worst(left)}"
    )
    if review is not None and review.weights:
        pieces = sum(map(len, review.missed))
        summary += f" A person found {pieces} more in {len(review.weights)} of the rows."
    elif review is not None:
        summary += " The review is of other data and does not count."
    else:
        summary += " No person has reviewed rows, so the leak is a model's guess."
    for language, missing in uncovered_languages(config).items():
        summary += f" Not covered: {language} ({missing})."
    foreign = _foreign(results)
    if foreign.total() > config.max_undeclared_language_share * len(results):
        (language, _), *_ = foreign.most_common(1)
        summary += (
            f" {foreign.total() / len(results):.1%} of the rows are in a language that "
            f"data.languages does not declare (most in {language}); personal data in them may be "
            "missed."
        )
    return summary


def _worst(left: Sequence[Measurement]) -> str:
    """Return a sentence on the entity of which most may be left, one that fails before others."""

    def order(m: Measurement) -> tuple[bool, float]:
        return m.ok is False and m.on_breach == "fail", inf if m.value is None else float(m.value)

    worst = max((m for m in left if m.name.endswith("_at_most")), key=order)
    entity = worst.name.removeprefix("left_per_1000_rows_").removesuffix("_at_most")
    if worst.value is None:
        return f"All canaries of {entity} leaked, so the number of values left can't be estimated."
    allowed = "" if worst.limit is None else f" ({worst.limit:g} may be)"
    return f"Most is left of {entity}: at most {worst.value:.2g} values per 1,000 rows{allowed}."


def _review(ctx: StepContext) -> reviews.PiiReview | None:
    """Read the review that the configuration names and compare it with the rows that are kept."""
    address = ctx.config.data.pii_review
    if address is None:
        return None
    rows = read_rows(ctx.out / ROWS)
    if address == reviews.ASK:
        sheet = reviews.make_sheet(rows, ctx.config.data.pii_review_rows)
        PII_SHEET.write(ctx, sheet)
        review = reviews.answered(ctx.run, sheet)
        if not review.weights:
            return None
    else:
        review = reviews.read_review(address, rows, ctx.scratch)
    if review.weights:
        write_audit(ctx.out / REVIEW, review.columns())
    return review


class _Counts:
    """What is counted of each row; rows with equal counts share one object."""

    def __init__(self) -> None:
        self.results: list[Scrubbed] = []
        self._known: dict[tuple[Any, ...], Scrubbed] = {}

    def scrub(
        self, rows: StoredRows, scrubber: Scrubber, workers: int, engine: Engine
    ) -> Iterator[Row]:
        """Yield the rows that stay, scrubbed; count them all."""
        given, kept = tee(rows)
        conversations = ((None, row.messages) for row in given)
        results = scrubber.each(conversations, workers, engine=engine)
        for row, result in zip(kept, results, strict=True):
            hits = tuple(sorted(result.hits.items()))
            key = (hits, result.residual, result.left, result.torn, result.refused, result.foreign)
            if key not in self._known:
                self._known[key] = replace(result, messages=[], surrogates=())
            self.results.append(self._known[key])
            if reason_to_reject(result) is None:
                yield scrubbed(row, result.messages, result.surrogates)


def run(ctx: StepContext) -> Evidence:
    """Scrub every row and estimate what leaks."""
    config = ctx.config.data
    rows = rows_before(ctx)
    # What the dataset's rows share is learnt from rows at equal distances.
    every = -(-len(rows) // LEARNT_ROWS)
    turns = [row.messages for row in rows.chosen([n % every == 0 for n in range(len(rows))])]
    scrubber = make_scrubber(config, shared_parts(turns))
    workers = worker_count(len(rows), LEAST_ROWS)
    engine = engine_of(config)
    ctx.log(f"{len(rows)} rows, {workers} workers" if engine is HERE else f"{len(rows)} rows")
    counts = _Counts()
    with TableWriter(ctx.out / ROWS, ROW_COLUMNS) as table:
        kept = counts.scrub(rows, scrubber, workers, engine)
        table.write(ctx.progress(kept, len(rows), "kept rows"))
    results = counts.results
    left = write_decisions(
        ctx,
        rows,
        [reason_to_reject(result) for result in results],
        hits=[result.hits.total() for result in results],
        residual_hits=[result.residual for result in results],
        values_left=[result.left for result in results],
        torn_copies=[result.torn for result in results],
        undeclared_language=[int(result.foreign is not None) for result in results],
    )
    seed = leaks.seed_of(ctx.run.run_id, rows.column("row_id"))
    hits = _hits(results)
    found = {entity: count * leaks.PER_ROWS / len(rows) for entity, count in hits.items()}
    carriers = leaks.draw_carriers(rows, seed)
    trial = leaks.run_trial(scrubber, carriers, config, seed, found)
    write_audit(ctx.out / CANARIES, trial.columns())
    ctx.quarantine.mkdir(parents=True, exist_ok=True)
    write_audit(ctx.quarantine / LEAKED_CANARIES.partition("/")[2], trial.examples())
    review = _review(ctx)
    left_behind = leaks.left_measurements(config, trial, hits, len(rows))
    spots = leaks.blind_spots(config, trial, scrubber.custom_entities)
    measurements = [
        *_row_measurements(results, table.rows, left),
        *_coverage_measurements(config, results, scrubber.ignored_labels),
        measure("canary_seed", seed, "text"),
        *leaks.form_measurements(trial),
        *leaks.leak_measurements(config, trial, hits),
        *left_behind,
        *reviews.review_measurements(review, table.rows, config),
        *(measure(name, "+".join(found) or "none", "text") for name, found in spots.items()),
    ]
    sizes = {
        **write_alike(ctx, rows),
        ROWS: table.rows,
        REJECTED: left,
        AUDIT: len(rows),
        CANARIES: len(trial.canaries),
        LEAKED_CANARIES: sum(trial.leaked),
        REVIEW: 0 if review is None else len(review.weights),
    }
    summary = _summary(config, results, trial, left_behind, review)
    return conclude(ctx, summary, measurements, rows=sizes)
