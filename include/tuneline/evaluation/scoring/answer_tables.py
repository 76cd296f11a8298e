"""The score of every hold-out row, answers of earlier runs, and answers that the limit cut.

`answers.parquet` is also the record of a scoring: bytes that the ledger knows are not asked twice.

A candidate that fills a limit beyond every expected answer does not end its answers. A model that
it is compared with may write at length first: where many of its answers were cut, some that are not
right are asked again with more room. One that scores better then, or is still in its thoughts, was
interrupted; one that rambles on was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import DATASET_VERSION
from tuneline.artifacts.evaluation import HOLDOUT_SCORES
from tuneline.asking.asking import Answer, LocalModel, ask_kept, keys_of
from tuneline.asking.models import Candidate
from tuneline.asking.rows import answer_limit, asked, tokens_at_most
from tuneline.asking.tasks import Judged
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.ledger import Holdout
from tuneline.evaluation.scoring.slices import groups_of
from tuneline.evidence import Breach, Finding, Measurement, measure
from tuneline.serving.client import Messages
from tuneline.serving.engines.engine import ServedModel
from tuneline.statistics import Interval
from tuneline.step_context import StepContext
from tuneline.store import CorruptObject, NotThere

if TYPE_CHECKING:
    import pyarrow as pa


def write_scores(
    ctx: StepContext,
    chosen: Candidate,
    rows: Sequence[Row],
    models: Mapping[str, Judged],
    more: Mapping[str, Sequence[float | None]],
) -> None:
    """Write `answers.parquet`; see `score_table`."""
    import pyarrow.parquet as pq

    table = score_table(rows, models, tuned_request=_keys(ctx, chosen, rows), **more)
    limit = str(answer_limit(ctx.run))
    described = {"candidate_sha256": chosen.model.sha256, "max_new_tokens": limit}
    pq.write_table(table.replace_schema_metadata(described), HOLDOUT_SCORES.path(ctx))


def score_table(
    rows: Sequence[Row],
    models: Mapping[str, Judged],
    **more: Sequence[str] | Sequence[float | None],
) -> pa.Table:
    """Return a table with the answers of models to rows, and the score of each, from 0 to 1."""
    import pyarrow as pa

    groups = groups_of(rows)
    prompts = [asked(row) for row in rows]
    return pa.table(
        {
            "row_id": [row.row_id for row in rows],
            "split": [row.split for row in rows],
            "label": [row.label for row in rows],
            "language": groups["language"],
            "source": [row.source_file for row in rows],
            "source_line": [row.source_line for row in rows],
            "prompt": prompts,
            "prompt_chars": [len(prompt) for prompt in prompts],
            "expected": [row.answer for row in rows],
            **{who: list(judged.answers) for who, judged in models.items()},
            **{f"{who}_score": list(map(float, one.scores)) for who, one in models.items()},
            **more,
        }
    )


def _keys(ctx: StepContext, chosen: Candidate, rows: Sequence[Row]) -> list[str]:
    limits = [answer_limit(ctx.run)] * len(rows)
    subject = LocalModel(chosen.model, ctx.config.deployment)
    return keys_of(subject, [row.prompt for row in rows], limits)


def recorded_answers(ctx: StepContext, chosen: Candidate, opened: Holdout) -> dict[str, Answer]:
    """Return what the candidate's bytes have answered to this hold-out, by the key of the request.

    A run that was deleted has left none, and its candidate is asked again.
    """
    sha256 = chosen.model.sha256
    runs = dict.fromkeys(access.run for access in opened.scored(sha256))
    return dict(pair for run in runs for pair in _answers_of(ctx, run, sha256))


def _answers_of(ctx: StepContext, run: str, candidate_sha256: str) -> Iterable[tuple[str, Answer]]:
    import pyarrow.parquet as pq

    store, scratch = ctx.run.store, ctx.scratch / "recorded.parquet"
    prefix = f"{store.uri}/"
    if not run.startswith(prefix):
        return []
    key = f"{run.removeprefix(prefix)}/evaluation/{HOLDOUT_SCORES.step}/{HOLDOUT_SCORES.name}"
    try:
        ref = store.get_file(key, scratch)
    except NotThere:
        return []
    except CorruptObject as error:
        ctx.log(f"{error}; its answers are not taken")
        return []
    table = pq.read_table(scratch)
    same = (table.schema.metadata or {}).get(b"candidate_sha256") == candidate_sha256.encode()
    if not same or "tuned_cut" not in table.column_names:
        return []
    if run != ctx.run.uri:
        # This step's own file is about to be replaced, so that no hash of it would stay true.
        ctx.note_input(f"recorded/{run.rpartition('/')[2]}/{HOLDOUT_SCORES.name}", ref.uri, scratch)
    columns = (table[name].to_pylist() for name in ("tuned_request", "tuned", "tuned_cut"))
    return [(key, Answer(text, cut=cut)) for key, text, cut in zip(*columns, strict=True)]


def scoring_measurements(
    ctx: StepContext, chosen: Candidate, rows: Sequence[Row], recorded: Mapping[str, Answer]
) -> list[Measurement]:
    """State how many answers are those of an earlier scoring of the same bytes.

    Asking them again with other limits would be another look at the same rows.
    """
    taken = sum(key in recorded for key in _keys(ctx, chosen, rows))
    again = len(rows) - taken if recorded else 0
    return [
        measure("candidate_answers_recorded", taken, "rows"),
        measure("rows_asked_again_otherwise", again, "rows", "<=", 0, on_breach="warn"),
    ]


# Share of the candidate's answers that may fill the limit without an end.
MAX_CUT = 0.01
# Share of the answers of a model to beat that may have lost by the limit.
MAX_INTERRUPTED = 0.05
# Cut answers that are asked again: all eight are as before with 5 % if every third would be better.
ASKED_AGAIN = 8
# The room they get: four times the limit, and tokens at least.
LEAST_ROOM = 256
# Rise of a score that more room explains; a likeness also rises a little with every word.
RISE = 0.1


def judge_cut(ctx: StepContext, answers: Sequence[Answer]) -> Finding:
    """Count the candidate's answers that the limit cut; a single one may just be long."""
    cut, limit = sum(answer.cut for answer in answers), answer_limit(ctx.run)
    document = DATASET_VERSION.find(ctx.run)
    longest = document.format.answer_tokens_max if document and document.format else None
    measured = [measure("max_new_tokens", limit, "tokens")]
    measured.append(measure("longest_expected_answer", longest, "tokens"))
    said = f"{cut} of {len(answers)} answers do not end within the limit of {limit} tokens (the "
    said += f"longest expected one has {longest}); "
    breach: Breach = "fail" if cut > max(1, MAX_CUT * len(answers)) else "warn"
    measured.append(measure("tuned_answers_cut", cut, "rows", "==", 0, on_breach=breach))
    return Finding(measured, said if cut else "")


def judge_interrupted(
    ctx: StepContext,
    name: str,
    model: ServedModel,
    *,
    prompts: Sequence[Messages],
    answers: Sequence[Answer],
    tuned: Judged,
) -> list[Measurement]:
    """State the answers of a model to beat that were cut, and those that lost by it, as shares.

    `tuned` has the task and what is expected of each row.
    """
    scores, count = tuned.other(answers, anywhere=True).scores, max(1, len(answers))
    share = round(sum(answer.cut for answer in answers) / count, 4)
    found = [measure(f"{name}_answers_cut", share, "share")]
    if share <= MAX_INTERRUPTED:
        return found
    wrong = [at for at, answer in enumerate(answers) if answer.cut and scores[at] < 1]
    again = wrong[:: -(-len(wrong) // ASKED_AGAIN) or 1]
    chosen, limit = [prompts[at] for at in again], answer_limit(ctx.run)
    room, whole = max(4 * limit, LEAST_ROOM), ctx.config.deployment.context_tokens
    taken = (sum(tokens_at_most(turn["content"]) for turn in each) for each in chosen)
    limits = [max(limit, min(room, whole - used)) for used in taken]
    longer, _ = ask_kept(ctx, model, chosen, limits, f"{name}, answers that were cut")
    lost, asked = 0, tuned.rows([at in again for at in range(len(answers))])
    risen = asked.other(longer, anywhere=True).scores
    for at, text, score in zip(again, longer, risen, strict=True):
        thinks = text.lstrip().startswith("<think>") and "</think>" not in text
        lost += thinks or score - scores[at] > RISE
    lost_share = round(lost / max(1, len(again)) * len(wrong) / count, 4)
    told, most = f"{name}_answers_interrupted", MAX_INTERRUPTED
    return [*found, measure(told, lost_share, "share", "<=", most, on_breach="inconclusive")]


# Rows that a person reads through.
SHOWN = 50


def wrong_rows(rows: Sequence[Row], judged: Judged) -> list[dict[str, Any]]:
    """Return the rows with the lowest scores, worst first; none that is wholly right."""
    ranked = sorted(range(len(rows)), key=lambda at: judged.scores[at])
    return [
        {
            "row_id": rows[at].row_id,
            "expected": rows[at].answer,
            "got": judged.answers[at],
            "score": round(judged.scores[at], 4),
        }
        for at in ranked[:SHOWN]
        if judged.scores[at] < 1.0
    ]


def confusion(judged: Judged) -> dict[str, Any]:
    """Return how often each expected label was answered with each other one.

    `counts[i][j]` are rows of label i that were answered with label j; the last two columns are
    answers with another label, and without any.
    """
    labels = sorted({label for label in judged.wanted if label is not None})
    counts = Counter(zip(judged.wanted, judged.named, strict=True))
    table = []
    for wanted in labels:
        row = [counts[wanted, named] for named in labels]
        none = counts[wanted, None]
        table.append([*row, judged.wanted.count(wanted) - sum(row) - none, none])
    return {"labels": labels, "columns": [*labels, "(another)", "(none)"], "counts": table}


def stated(name: str, found: Interval, unit: str = "share") -> list[Measurement]:
    """State an estimate with its noise and both ends of its interval."""
    return [
        measure(name, round(found.value, 4), unit, noise=round(found.error, 4)),
        measure(f"{name}_lower", round(found.lower, 4), unit),
        measure(f"{name}_upper", round(found.upper, 4), unit),
    ]


def label_measurements(name: str, judged: Judged) -> list[Measurement]:
    """State the macro-F1 of a model whose answers are labels."""
    return stated(f"{name}_macro_f1", judged.macro_f1) if judged.wanted else []
