"""The score of every hold-out row, and the answers that a model has left in earlier runs.

`answers.parquet` is also the record of a scoring: bytes that the ledger knows are not asked twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.evaluation import HOLDOUT_SCORES
from tuneline.asking.asking import LocalModel, keys_of
from tuneline.asking.models import Candidate
from tuneline.asking.rows import asked
from tuneline.asking.tasks import Judged
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.ledger import Holdout
from tuneline.evaluation.scoring.slices import groups_of
from tuneline.evidence import Measurement, measure
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
    limit = str(ctx.config.evaluation.max_new_tokens)
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
    limits = [ctx.config.evaluation.max_new_tokens] * len(rows)
    subject = LocalModel(chosen.model, ctx.config.deployment)
    return keys_of(subject, [row.prompt for row in rows], limits)


def recorded_answers(ctx: StepContext, chosen: Candidate, opened: Holdout) -> dict[str, str]:
    """Return what the candidate's bytes have answered to this hold-out, by the key of the request.

    A run that was deleted has left none, and its candidate is asked again.
    """
    sha256 = chosen.model.sha256
    runs = dict.fromkeys(access.run for access in opened.scored(sha256))
    return dict(pair for run in runs for pair in _answers_of(ctx, run, sha256))


def _answers_of(ctx: StepContext, run: str, candidate_sha256: str) -> Iterable[tuple[str, str]]:
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
    if (table.schema.metadata or {}).get(b"candidate_sha256") != candidate_sha256.encode():
        return []
    if run != ctx.run.uri:
        # This step's own file is about to be replaced, so that no hash of it would stay true.
        ctx.note_input(f"recorded/{run.rpartition('/')[2]}/{HOLDOUT_SCORES.name}", ref.uri, scratch)
    return zip(table["tuned_request"].to_pylist(), table["tuned"].to_pylist(), strict=True)


def scoring_measurements(
    ctx: StepContext, chosen: Candidate, rows: Sequence[Row], recorded: Mapping[str, str]
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
