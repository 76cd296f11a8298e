"""Make the blind A/B review: pairs of answers whose sides are shuffled and hidden.

Reviewers see `pairs.json`: a question and the answers A and B. Which side is
which model stands only in `quarantine/review_key.json`, under the prefix that
reviewers cannot read, and is drawn from the operating system's randomness: no
seed of the run gives it away. Answers that are equal word for word are not
shown (there is nothing to prefer); how many were is noted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.ledger import open_holdout
from tuneline.evidence import Record, measure
from tuneline.harness.answers import parse_answer
from tuneline.harness.rows import asked, dataset_rows, spread
from tuneline.run import StepContext

PAIRS = "pairs.json"
KEY = "review_key.json"
SCHEMA = "tuneline/review/1"
INSTRUCTIONS = (
    "Read the question, then both answers. Choose the one you would rather have sent to the "
    "customer: right first, then complete, then clear. Choose tie when they are equally good. "
    "Which model wrote which answer is hidden and changes from pair to pair."
)


def candidates(rows: Sequence[Row], answers: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows that both models answered, with different answers."""
    return [
        row
        for row in rows
        if row.row_id in answers
        and answers[row.row_id]["base"].strip() != answers[row.row_id]["tuned"].strip()
    ]


def shuffle_pairs(
    rows: Sequence[Row], answers: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Build the pairs and their key.

    Half of the pairs (rounded by chance) have the tuned model on side A, in random
    order: drawing each side alone would often put one model mostly on one side.

    Args:
        rows: the rows to show, at least one.
        answers: by row id, the answers `base` and `tuned`.

    Returns:
        The pairs as reviewers see them, and the key.
    """
    random = secrets.SystemRandom()
    order = random.sample(list(rows), len(rows))
    half = len(rows) // 2 + (random.randrange(2) if len(rows) % 2 else 0)
    tuned_first = random.sample([True] * half + [False] * (len(rows) - half), len(rows))
    pairs, key = [], []
    for number, (row, first) in enumerate(zip(order, tuned_first, strict=True), 1):
        sides = ("tuned", "base") if first else ("base", "tuned")
        shown = {
            side: _readable(answers[row.row_id][who]) for side, who in zip("AB", sides, strict=True)
        }
        pairs.append({"pair": number, "prompt": asked(row), **shown})
        key.append({"pair": number, "row_id": row.row_id, "A": sides[0], "B": sides[1]})
    return pairs, key


def _readable(answer: str) -> str:
    """A JSON answer on lines of its own, anything else as it is."""
    parsed = parse_answer(answer)
    return answer if parsed is None else json.dumps(parsed, indent=1, ensure_ascii=False)


def run(ctx: StepContext) -> Record:
    """Choose rows whose answers differ, shuffle their sides and hide the key."""
    rows = dataset_rows(ctx)
    lines = ctx.input("holdout_performance", "answers.jsonl").read_text().splitlines()
    answers = {entry["row_id"]: entry for entry in map(json.loads, lines)}
    candidate = json.loads(ctx.input("production_quantization", "choice.json").read_text())
    held, _, _ = open_holdout(ctx, rows, "review", candidate["sha256"])
    different = candidates(held, answers)
    chosen = spread(different, ctx.config.evaluation.review_pairs, ctx.config.training.seed)
    pairs, key = shuffle_pairs(chosen, answers)
    review_id = secrets.token_hex(8)
    shown = {
        "schema": SCHEMA,
        "review_id": review_id,
        "instructions": INSTRUCTIONS,
        "choices": ["A", "B", "tie"],
        "pairs": pairs,
    }
    hidden = {"schema": SCHEMA, "review_id": review_id, "pairs": key}
    (ctx.out / PAIRS).write_text(json.dumps(shown, indent=1, ensure_ascii=False))
    (ctx.quarantine / KEY).write_text(json.dumps(hidden, indent=1))
    return ctx.record(
        f"{len(pairs)} blind pairs, of {len(different)} rows on which the answers differ",
        [
            measure("pairs", len(pairs), "pairs"),
            measure("identical_answers", len(answers) - len(different), "rows"),
        ],
    )
