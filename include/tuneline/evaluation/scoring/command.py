"""`tuneline score`: ask a model the rows of a dataset, and state how often it is right.

The rows are those of training or validation. The hold-out is read through a run alone, where its
ledger records who did; see `evaluation.holdout.ledger`. A call that was stopped goes on where it
was if it is given the same `--out`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tuneline.config.evaluation import SlicesConfig
from tuneline.data.tables.rows import fetch_dataset, read_dataset
from tuneline.errors import UserError
from tuneline.evaluation.holdout.row_scores import score_table
from tuneline.evaluation.holdout.slices import find_slices, slice_sentence, slices_document
from tuneline.evaluation.scoring.models import Asked, subject_of
from tuneline.harness.answers import Metric, choose_task
from tuneline.harness.asking import collect
from tuneline.harness.judged import judge
from tuneline.harness.kept_answers import KeptAnswers
from tuneline.harness.rows import of_split
from tuneline.terminal import track


def score(
    asked: Asked,
    data: str,
    out: Path,
    *,
    split: str,
    metric: Literal["auto"] | Metric,
    label_field: str | None,
    max_tokens: int,
) -> dict[str, Any]:
    """Score a model and write `answers.parquet` and `slices.json`.

    Args:
        asked: the model.
        data: path, `file://` or `s3://` address of a `dataset.parquet`.
        out: folder for what is written.
        split: `train` or `validation`.
        metric: see `evaluation.metric`.
        label_field: field of a JSON answer that holds the class.
        max_tokens: limit of an answer, in tokens.

    Returns:
        What was measured, for `--json`.

    Raises:
        UserError: if the model or the dataset is wrong, or has no row of the split.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="tuneline-score-") as folder:
        rows, _ = read_dataset(fetch_dataset(data, Path(folder), f"--data {data}"))
        rows = of_split(rows, split)
        if not rows:
            raise UserError(f"--data {data} has no {split} row; choose another --split")
        subject = subject_of(asked, Path(folder), _say)
        expected = [row.answer for row in rows]
        task = choose_task(metric, label_field, expected)
        out.mkdir(parents=True, exist_ok=True)
        with KeptAnswers(out / "kept_answers.jsonl") as kept_answers:
            answers, _ = collect(
                subject,
                [row.prompt for row in rows],
                [max_tokens] * len(rows),
                kept_answers,
                progress=lambda batches: track(batches, len(batches), "batches of prompts"),
            )
    judged = judge(task, answers, expected)
    right = judged.scores
    config = SlicesConfig()
    slices = find_slices(rows, right, config)
    pq.write_table(score_table(rows, {"model": answers}, {"model": right}), out / "answers.parquet")
    document = slices_document(slices, config)
    (out / "slices.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
    found = judged.interval
    return {
        "model": asked.model,
        "metric": task.name,
        "rows": len(rows),
        "value": round(found.value, 4),
        "lower": round(found.lower, 4),
        "upper": round(found.upper, 4),
        "slices_clearly_worse": [asdict(each) for each in slices.worse],
        "sentence": f"{task.name} on {len(rows)} {split} rows: {found.text()}; "
        f"{slice_sentence(slices)}",
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
