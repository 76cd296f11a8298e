"""The task metric of base and tuned model on a hold-out that nothing was chosen on.

Proves, on the bytes that ship, that the tuned model does the task better than
the base: both answer the same hold-out rows through a real server, the metric
has a 95 % interval for each (Wilson), and the paired gain has one too (Agresti
and Min), whose lower end decides. It also proves that the hold-out is one: its
share, that no row of it or near-duplicate was in training or validation (an
exact check, independent of deduplication), and a ledger of every access, none
of which chose anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from tuneline.data.tables.rows import HOLDOUT, Row
from tuneline.errors import UserError
from tuneline.evaluation.holdout.leakage import near_duplicates, same_ids
from tuneline.evaluation.holdout.ledger import Access, choosing, ledger_prefix, open_holdout
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.answers import Task, choose_task, parse_answer, scores
from tuneline.harness.intervals import Interval, Paired, paired, share
from tuneline.harness.rows import dataset_rows
from tuneline.harness.served_models import Candidate, ask, ask_base, base_gguf, candidate
from tuneline.run import StepContext

# The checklist asks for a hold-out of 10 to 20 % of the rows.
MIN_SHARE, MAX_SHARE = 0.10, 0.20
ANSWERS = "answers.jsonl"


def share_measurements(held: int, total: int, *, own_file: bool) -> list[Measurement]:
    """The share of rows held out; no rule where the dataset brings a hold-out of its own."""
    value = round(held / total, 4)
    if own_file:
        return [measure("holdout_share", value, "share"), measure("holdout_rows", held, "rows")]
    return [
        measure("holdout_share", value, "share", ">=", MIN_SHARE),
        measure("holdout_share_upper", value, "share", "<=", MAX_SHARE),
        measure("holdout_rows", held, "rows"),
    ]


def leak_measurements(
    held: Sequence[Row], seen: Sequence[Row], threshold: float
) -> tuple[list[Measurement], list[dict[str, object]]]:
    """Whether anything of the hold-out was seen before; the leaks found are listed too."""
    repeated = same_ids(held, seen)
    leaks = near_duplicates(held, seen, threshold)
    found = [{"row_id": row_id, "reason": "same id"} for row_id in repeated]
    listed = [*found, *({**asdict(leak), "reason": "near-duplicate"} for leak in leaks)]
    return [
        measure("rows_also_seen", len(repeated), "rows", "<=", 0),
        measure("near_duplicates_of_seen_rows", len(leaks), "rows", "<=", 0),
    ], listed


def ledger_measurements(
    earlier: Sequence[Access], chosen: Candidate, held: Sequence[Row]
) -> list[Measurement]:
    """What the ledger and the choice of the variant say of earlier uses of the hold-out."""
    scored = [access for access in earlier if access.purpose == "score"]
    again = sum(access.candidate_sha256 == chosen.file.sha256 for access in scored)
    others = {access.candidate_sha256 for access in scored} - {chosen.file.sha256}
    judged = sum(row.row_id in chosen.judged_on for row in held)
    return [
        measure("accesses_that_chose_something", len(choosing(earlier)), "accesses", "<=", 0),
        measure("rows_a_variant_was_chosen_on", judged, "rows", "<=", 0),
        measure("earlier_scorings_of_these_bytes", again, "accesses"),
        measure("other_candidates_scored_before", len(others), "candidates"),
    ]


def score_measurements(
    base: Interval, tuned: Interval, gain: Paired, min_gain: float
) -> list[Measurement]:
    """The metric of both models and the gain, whose lower bound decides."""
    found: list[Measurement] = []
    for name, interval in (("base", base), ("tuned", tuned)):
        found += [
            measure(
                f"{name}_metric", round(interval.value, 4), "share", noise=round(interval.error, 4)
            ),
            measure(f"{name}_metric_lower", round(interval.lower, 4), "share"),
            measure(f"{name}_metric_upper", round(interval.upper, 4), "share"),
        ]
    difference = gain.difference
    return [
        *found,
        measure("gain", round(difference.value, 4), "share", noise=round(difference.error, 4)),
        measure("gain_lower", round(difference.lower, 4), "share", ">", min_gain),
        measure("gain_upper", round(difference.upper, 4), "share"),
        measure("mcnemar_p", round(gain.p_value, 6), "p"),
        measure("only_base_right", gain.only_first, "rows"),
        measure("only_tuned_right", gain.only_second, "rows"),
    ]


def form_measurements(
    task: Task, answers: dict[str, list[str]], expected: Sequence[str]
) -> Iterator[Measurement]:
    """How much of the metric is form: valid JSON, and right once JSON is fished out of prose."""
    if task.metric != "json_field":
        return
    for who, texts in answers.items():
        valid = sum(parse_answer(text) is not None for text in texts)
        loose = sum(
            task.right_anywhere(text, want) for text, want in zip(texts, expected, strict=True)
        )
        yield measure(f"{who}_valid_json", round(valid / len(texts), 4), "share")
        yield measure(f"{who}_right_ignoring_form", round(loose / len(texts), 4), "share")


def run(ctx: StepContext) -> Evidence:
    """Score base and candidate on the hold-out, once, and prove that it is one."""
    settings, data = ctx.config.evaluation, ctx.config.data
    rows = dataset_rows(ctx)
    chosen = candidate(ctx)
    held, identity, earlier = open_holdout(ctx, rows, "score", chosen.file.sha256)
    if not held:
        raise UserError(
            "the dataset has no hold-out row; raise data.holdout_share or name data.holdout"
        )
    seen = [row for row in rows if row.split != HOLDOUT]
    leak_limits, leaks = leak_measurements(held, seen, data.near_duplicate_jaccard)
    expected = [row.answer for row in held]
    task = choose_task(settings.metric, data.label_field, expected)

    prompts = [row.prompt for row in held]
    limits = [settings.max_new_tokens] * len(held)
    tuned = ask(ctx, chosen.file.path, prompts, limits, "tuned model")
    base, cached = ask_base(ctx, base_gguf(ctx), prompts, limits, "base model")
    right = {"base": scores(task, base, expected), "tuned": scores(task, tuned, expected)}
    intervals = {who: share(flags) for who, flags in right.items()}
    gain = paired(right["base"], right["tuned"])

    _write_answers(ctx, held, base, tuned)
    (ctx.out / "leaks.json").write_text(json.dumps(leaks, indent=1))
    accesses = [asdict(access) for access in earlier]
    ledger = {"holdout_sha256": identity, "prefix": ledger_prefix(identity), "earlier": accesses}
    (ctx.out / "ledger.json").write_text(json.dumps(ledger, indent=1))
    summary = (
        f"{task.name} on {len(held)} hold-out rows: tuned {intervals['tuned'].text()}, "
        f"base {intervals['base'].text()}; gain at least {gain.difference.lower:.3f}, "
        f"{len(leaks)} rows seen before"
    )
    return ctx.conclude(
        summary,
        [
            *score_measurements(intervals["base"], intervals["tuned"], gain, settings.min_gain),
            *share_measurements(len(held), len(rows), own_file=data.holdout is not None),
            *leak_limits,
            *ledger_measurements(earlier, chosen, held),
            *form_measurements(task, {"base": base, "tuned": tuned}, expected),
            measure("base_answers_from_cache", cached, "flag"),
            measure("candidate_sha256", chosen.file.sha256, "sha256"),
            measure("holdout_sha256", identity, "sha256"),
        ],
        rows={ANSWERS: len(held)},
    )


def _write_answers(
    ctx: StepContext, held: Sequence[Row], base: Sequence[str], tuned: Sequence[str]
) -> None:
    with (ctx.out / ANSWERS).open("w", encoding="utf-8") as out:
        for row, of_base, of_tuned in zip(held, base, tuned, strict=True):
            entry = {
                "row_id": row.row_id,
                "expected": row.answer,
                "base": of_base,
                "tuned": of_tuned,
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
