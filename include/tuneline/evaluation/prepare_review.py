"""prepare_review: pairs of answers for a blind A/B review, their sides shuffled and hidden.

Reviewers see `pairs.json`: a question and the answers A and B. The model behind each side is
named only in `quarantine/review_key.json`, below a prefix that reviewers cannot read, and is
drawn from the operating system's randomness, so that no seed of the run reveals it. Answers
that are equal word for word are not shown, since there is nothing to prefer; their number is
noted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence

from tuneline.artifacts.deployment import CHOICE
from tuneline.artifacts.evaluation import (
    HOLDOUT_ANSWERS,
    REVIEW_KEY,
    REVIEW_PAIRS,
    AnswerPair,
    KeyEntry,
    ReviewKey,
    ReviewPair,
    ReviewSheet,
    Side,
)
from tuneline.data.conversations.answers import answer_object
from tuneline.data.tables.rows import Row
from tuneline.evaluation.holdout.ledger import open_holdout
from tuneline.evidence import Record, measure
from tuneline.harness.rows import asked, spread
from tuneline.run import StepContext

INSTRUCTIONS = (
    "Read the question, then both answers. Choose the one you would rather have sent to the "
    "customer: right first, then complete, then clear. Choose tie when they are equally good. "
    "Which model wrote which answer is hidden and changes from pair to pair."
)


def shuffle_pairs(
    rows: Sequence[Row], answers: Mapping[str, AnswerPair]
) -> tuple[list[ReviewPair], list[KeyEntry]]:
    """Build the pairs in random order, and their key.

    Half of the pairs (an odd one by chance) have the tuned model on side A: drawing each
    side independently would often put one model mostly on one side.

    Args:
        rows: the rows to show.
        answers: the answers by row id.

    Returns:
        The pairs as reviewers see them, and the key.
    """
    random = secrets.SystemRandom()
    order = random.sample(list(rows), len(rows))
    half = len(rows) // 2 + (random.randrange(2) if len(rows) % 2 else 0)
    tuned_first = random.sample([True] * half + [False] * (len(rows) - half), len(rows))
    pairs, key = [], []
    for number, (row, first) in enumerate(zip(order, tuned_first, strict=True), 1):
        sides: tuple[Side, Side] = ("tuned", "base") if first else ("base", "tuned")
        a, b = (_indented(getattr(answers[row.row_id], side)) for side in sides)
        pairs.append(ReviewPair(pair=number, prompt=asked(row), A=a, B=b))
        key.append(KeyEntry(pair=number, row_id=row.row_id, A=sides[0], B=sides[1]))
    return pairs, key


def _indented(answer: str) -> str:
    """Return a JSON answer with one field on a line, anything else as it is."""
    parsed = answer_object(answer)
    return answer if parsed is None else json.dumps(parsed, indent=1, ensure_ascii=False)


def run(ctx: StepContext) -> Record:
    """Choose rows whose answers differ, shuffle their sides and hide the key."""
    answers = {entry.row_id: entry for entry in HOLDOUT_ANSWERS.read(ctx)}
    held = open_holdout(ctx, "review", CHOICE.read(ctx).sha256).held
    different = [row for row in held if row.row_id in answers and answers[row.row_id].differ]
    chosen = spread(different, ctx.config.evaluation.review_pairs, ctx.config.training.seed)
    pairs, key = shuffle_pairs(chosen, answers)
    review_id = secrets.token_hex(8)
    REVIEW_PAIRS.write(
        ctx, ReviewSheet(review_id=review_id, instructions=INSTRUCTIONS, pairs=pairs)
    )
    REVIEW_KEY.write(ctx, ReviewKey(review_id=review_id, pairs=key))
    return ctx.record(
        f"{len(pairs)} blind pairs, from {len(different)} rows on which the answers differ",
        [
            measure("pairs", len(pairs), "pairs"),
            measure("identical_answers", len(answers) - len(different), "rows"),
        ],
    )
