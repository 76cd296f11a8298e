"""holdout_performance: the candidate does the task, better than what could be had without it.

Method: base and candidate answer the same hold-out rows through a real server, on the bytes that
ship, judged by `scoring/gate.py` and, if a version is released, against its bytes
(`scoring/released.py`). Each answer of a conversation is a question. The hold-out is checked too:
its share of the rows, that no row of it or near-duplicate was trained on, and that no access in its
ledger chose anything. Rows that ask the same count as one, and candidates that were tried on the
same rows since the last release share the error that one claim may have. Rows that a warm start has
seen are left out; what has been asked before is not asked again; parts on which it is clearly worse
are named (`scoring/slices.py`). Texts are judged by their likelihood too
(`scoring/reference_likelihood.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tuneline.artifacts.data import DATASET, audit_of
from tuneline.artifacts.evaluation import HOLDOUT_ANSWERS, HOLDOUT_SCORES, AnswerPair
from tuneline.artifacts.releases import released
from tuneline.asking.asking import ask, ask_kept
from tuneline.asking.models import Candidate, untuned
from tuneline.asking.rows import answer_limit, of_split
from tuneline.asking.tasks import judge
from tuneline.data.tables.rows import HOLDOUT, TRAIN, Row
from tuneline.evaluation.scoring.answer_tables import (
    judge_cut,
    judge_interrupted,
    scoring_measurements,
    write_scores,
)
from tuneline.evaluation.scoring.gate import decide, judge_coverage
from tuneline.evaluation.scoring.ledger import (
    Holdout,
    choosing,
    independent_groups,
    ledger_prefix,
    near_duplicates,
    same_ids,
)
from tuneline.evaluation.scoring.reference_likelihood import judge_texts
from tuneline.evaluation.scoring.released import compare_with_released
from tuneline.evaluation.scoring.shards import gather, open_exam
from tuneline.evaluation.scoring.slices import (
    find_slices,
    plot_slices,
    slice_measurements,
    slice_sentence,
    slices_document,
)
from tuneline.evidence import Breach, Evidence, Measurement, measure
from tuneline.statistics import TAIL
from tuneline.step_context import StepContext

# The checklist asks for a hold-out of 10 to 20 % of the rows.
MIN_SHARE, MAX_SHARE = 0.10, 0.20
# Rows that count: with fewer, each moves the metric by more than three points.
MIN_ROWS = 30
# Candidates that may be scored on the same rows before fresh ones are due.
MOST_CANDIDATES = 30


def share_measurements(held: int, total: int, *, own_file: bool) -> list[Measurement]:
    """Measure the share of rows held out; `own_file`: no rule limits a hold-out file of its own."""
    value, rows = round(held / total, 4), measure("holdout_rows", held, "rows")
    if own_file:
        return [measure("holdout_share", value, "share"), rows]
    return [
        measure("holdout_share", value, "share", ">=", MIN_SHARE),
        measure("holdout_share_upper", value, "share", "<=", MAX_SHARE),
        rows,
    ]


def share_before_balancing(ctx: StepContext, opened: Holdout) -> tuple[int, int]:
    """Return the rows held out and all rows, of those that came to balancing, where it is known.

    A class that is sampled down, or a cap on the rows, changes nothing of what was held out.
    """
    import pyarrow.parquet as pq

    audit = audit_of(DATASET.step)
    if ctx.run.find_entry(audit.step) and audit.exists(ctx):
        splits = pq.read_table(audit.fetch(ctx), columns=["split"])["split"].to_pylist()
    else:
        splits = [row.split for row in (*opened.held, *opened.seen)]
    return splits.count(HOLDOUT), len(splits)


def leak_measurements(
    held: Sequence[Row], seen: Sequence[Row], threshold: float
) -> tuple[list[Measurement], list[dict[str, object]]]:
    """Measure how much of the hold-out was in training or validation (Jaccard), and list it."""
    repeated = same_ids(held, seen)
    leaks = near_duplicates(held, seen, threshold)
    return [
        measure("rows_also_seen", len(repeated), "rows", "<=", 0),
        measure("near_duplicates_of_seen_rows", len(leaks), "rows", "<=", 0),
    ], [
        *({"row_id": row_id, "reason": "same id"} for row_id in repeated),
        *({**asdict(leak), "reason": "near-duplicate"} for leak in leaks),
    ]


def candidates_for_release(ctx: StepContext, opened: Holdout, chosen: Candidate) -> int:
    """Count the candidates that were scored since the released one was, this one included.

    They share the error of one test (Bonferroni).
    """
    release = released(ctx.run)
    since = ctx.run.store.uri_of(f"runs/{release.version}") if release else ""
    return len(opened.candidates(since) | {chosen.model.sha256})


def ledger_measurements(
    ctx: StepContext, opened: Holdout, chosen: Candidate, tried: int
) -> list[Measurement]:
    """Measure earlier uses of the hold-out, and of others with the same rows; write the ledger."""
    own, sha256 = opened.earlier, chosen.model.sha256
    choices = [access for each in opened.inherited for access in choosing(each.accesses)]
    document = {
        "holdout_sha256": opened.sha256,
        "prefix": ledger_prefix(opened.sha256),
        "earlier": list(map(asdict, own)),
        "shared": [{"holdout_sha256": e.holdout, "rows": e.rows} for e in opened.inherited],
        "earlier_on_shared_rows": list(map(asdict, choices)),
    }
    ctx.write_json("ledger.json", document)
    scored, others = "other_candidates_scored_before", len(opened.candidates() - {sha256})
    judged = sum(row.row_id in chosen.judged_on for row in opened.held)
    return [
        measure("accesses_that_chose_something", len(choosing(own)), "accesses", "<=", 0),
        measure("accesses_that_chose_on_shared_rows", len(choices), "accesses", "<=", 0),
        measure("rows_a_variant_was_chosen_on", judged, "rows", "<=", 0),
        measure(scored, others, "candidates", "<=", MOST_CANDIDATES, on_breach="warn"),
        measure("candidates_for_this_release", tried, "candidates"),
        measure("error_of_each_claim", round(TAIL / tried, 6), "share"),
    ]


def ledger_sentence(opened: Holdout, tried: int) -> str:
    """Return a part of a sentence on the candidates that were tried on the same rows."""
    count = len(opened.candidates())
    sharing = f"candidate {tried} on these rows since the last release, so that each claim may err "
    said = f"{sharing}in {TAIL / tried:.2%} of the cases; " if tried > 1 else ""
    fresh = f"{count} candidates have been scored on them: hold out fresh rows; "
    return said + (fresh if count > MOST_CANDIDATES else "")


def distinct_rows(groups: Sequence[int], profile: str) -> Measurement:
    """Measure how many rows count, those that ask the same as one."""
    breach: Breach = "inconclusive" if profile == "production" else "warn"
    return measure("distinct_rows", len(set(groups)), "rows", ">=", MIN_ROWS, on_breach=breach)


def run(ctx: StepContext) -> Evidence:
    """Score base and candidate on the hold-out, once, and check the hold-out itself."""
    settings, data = ctx.config.evaluation, ctx.config.data
    exam = open_exam(ctx)
    chosen, opened, asked, task = exam.chosen, exam.opened, exam.rows, exam.task
    held, seen, expected = opened.held, opened.seen, [row.answer for row in asked]
    leak_limits, leaks = leak_measurements(held, seen, data.near_duplicate_jaccard)
    prompts, limits = [row.prompt for row in asked], [answer_limit(ctx.run)] * len(asked)
    gathered = gather(ctx, exam)
    tuned = ask(ctx, chosen.model, prompts, limits, "tuned model", known=exam.recorded)
    cut, model = judge_cut(ctx, tuned), untuned(ctx)
    base, cached = ask_kept(ctx, model, prompts, limits, "base model")
    groups, tried = independent_groups(ctx, asked), candidates_for_release(ctx, opened, chosen)
    parts, few = exam.further
    judged = [
        judge(each, tuned, expected, groups, TAIL / tried, questions=prompts)
        for each in (task, *parts)
    ]
    interrupted = judge_interrupted(
        ctx, "base", model, prompts=prompts, answers=base, tuned=judged[0]
    )
    models = {"base": judged[0].other(base), "tuned": judged[0]}
    decision = decide(ctx, asked, of_split(seen, TRAIN), models["base"], judged)
    against = compare_with_released(ctx, chosen.model, asked, judged)
    texts, likelihoods = judge_texts(ctx, chosen, asked, judged)
    coverage = judge_coverage(ctx.config, judged, few)
    slices = find_slices(asked, judged[0].scores, settings.slices, groups)
    ctx.write_json("slices.json", slices_document(slices, settings.slices))
    plot_slices(slices, ctx.out / "slices.svg")

    HOLDOUT_ANSWERS.write(
        ctx,
        (
            AnswerPair(row_id=row.row_id, expected=row.answer, base=of_base, tuned=of_tuned)
            for row, of_base, of_tuned in zip(asked, base, tuned, strict=True)
        ),
    )
    cuts = {"base_cut": [a.cut for a in base], "tuned_cut": [a.cut for a in tuned]}
    write_scores(ctx, chosen, asked, models, {**likelihoods, **cuts})
    ctx.write_json("leaks.json", leaks)
    leaked = len({leak["row_id"] for leak in leaks})
    return ctx.conclude(
        f"{cut.sentence}{decision.sentence}; {texts.sentence}{coverage.sentence}{leaked} of the "
        f"rows, or near-duplicates of them, were in training or validation; {against.sentence}; "
        f"{ledger_sentence(opened, tried)}{slice_sentence(slices)}",
        [
            *decision.measurements,
            *cut.measurements,
            *interrupted,
            *share_measurements(
                *share_before_balancing(ctx, opened), own_file=data.holdout is not None
            ),
            *leak_limits,
            *exam.left_out,
            *gathered,
            distinct_rows(groups, ctx.config.profile),
            *texts.measurements,
            *coverage.measurements,
            *against.measurements,
            *slice_measurements(slices, ctx.config.profile),
            *ledger_measurements(ctx, opened, chosen, tried),
            *scoring_measurements(ctx, chosen, asked, exam.recorded),
            measure("base_answers_from_cache", cached, "flag"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
            measure("holdout_sha256", opened.sha256, "sha256"),
        ],
        rows={HOLDOUT_ANSWERS.name: len(asked), HOLDOUT_SCORES.name: len(asked)},
    )
