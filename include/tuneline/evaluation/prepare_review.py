"""prepare_review: pairs of answers for a blind A/B review, their sides shuffled and hidden.

The model behind each side is named only in `quarantine/review_key.json`, which reviewers cannot
read, and drawn from the operating system's randomness, so that no seed reveals it. The tuned model
is paired with the base and, where holdout_performance asked it, the released one; equal answers are
not shown. Rows are drawn evenly over the labels: the win rate should not speak of the most frequent
one alone.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneline.artifacts.deployment import CHOICE
from tuneline.artifacts.evaluation import (
    HOLDOUT_ANSWERS,
    RELEASED_ANSWERS,
    REVIEW_KEY,
    REVIEW_PAIRS,
    KeyEntry,
    ReviewKey,
    ReviewPair,
    ReviewSheet,
    Side,
)
from tuneline.asking.rows import asked, spread
from tuneline.data.conversations.answers import answer_object
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.ledger import open_holdout
from tuneline.evidence import Record, measure
from tuneline.step_context import StepContext

INSTRUCTIONS = (
    "Read the question, then both answers. Choose the one you would rather have sent to the "
    "customer: right first, then complete, then clear. Choose tie when they are equally good, and "
    "both bad when you would send neither. Which model wrote which answer is hidden and changes "
    "from pair to pair."
)

# The answers to each row, by row id and model.
Answers = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class DrawnPair:
    """A row to show, and the model that the tuned one is compared with."""

    row: Row
    other: Side


@dataclass(frozen=True)
class PairDraw:
    """The pairs of one comparison, and how many rows both answered, and otherwise."""

    answered: int
    different: int
    pairs: list[DrawnPair]


def draw(rows: Sequence[Row], answers: Answers, other: Side, *, pairs: int, seed: int) -> PairDraw:
    """Draw at most `pairs` pairs of one comparison, from the rows on which the answers differ."""
    both = [row for row in rows if {"tuned", other} <= answers.get(row.row_id, {}).keys()]
    texts = {row.row_id: (answers[row.row_id]["tuned"], answers[row.row_id][other]) for row in both}
    # More than the space around them has to differ.
    different = [row for row in both if len({text.strip() for text in texts[row.row_id]}) > 1]
    chosen = [DrawnPair(row, other) for row in spread(different, pairs, seed)]
    return PairDraw(len(both), len(different), chosen)


def answers_by_row(ctx: StepContext) -> dict[str, dict[str, str]]:
    """Return the answers of the base, the tuned and, if it was asked, the released model."""
    found = {
        entry.row_id: {"base": entry.base, "tuned": entry.tuned}
        for entry in HOLDOUT_ANSWERS.read(ctx)
    }
    if RELEASED_ANSWERS.exists(ctx):
        for entry in RELEASED_ANSWERS.read(ctx):
            found.setdefault(entry.row_id, {})["released"] = entry.released
    return found


def shuffle_pairs(
    chosen: Sequence[DrawnPair], answers: Answers
) -> tuple[list[ReviewPair], list[KeyEntry]]:
    """Build the pairs in random order as reviewers see them, and their key.

    Half of the pairs of each comparison (an odd one by chance) have the tuned model on side A:
    drawing each side independently would often put one model mostly on one side.
    """
    random = secrets.SystemRandom()
    tuned_first = _sides([given.other for given in chosen], random)
    pairs, key = [], []
    for number, place in enumerate(random.sample(range(len(chosen)), len(chosen)), 1):
        given, row = chosen[place], chosen[place].row
        first, second = ("tuned", given.other) if tuned_first[place] else (given.other, "tuned")
        a, b = (shown_as(answers[row.row_id][side]) for side in (first, second))
        pairs.append(ReviewPair(pair=number, prompt=asked(row), A=a, B=b))
        label = row.label or "no label"
        key.append(KeyEntry(pair=number, row_id=row.row_id, A=first, B=second, stratum=label))
    return pairs, key


def _sides(others: Sequence[Side], random: secrets.SystemRandom) -> list[bool]:
    """Draw for each pair whether the tuned model is on side A, evenly within each comparison."""
    drawn = [False] * len(others)
    for other in set(others):
        places = [place for place, given in enumerate(others) if given == other]
        half = len(places) // 2 + (random.randrange(2) if len(places) % 2 else 0)
        for place in random.sample(places, half):
            drawn[place] = True
    return drawn


def shown_as(answer: str) -> str:
    """Return a JSON answer with one field on a line, anything else as it is."""
    parsed = answer_object(answer)
    return answer if parsed is None else json.dumps(parsed, indent=1, ensure_ascii=False)


def run(ctx: StepContext) -> Record:
    """Choose rows whose answers differ, shuffle their sides and hide the key."""
    settings, seed = ctx.config.evaluation, ctx.config.training.seed
    answers = answers_by_row(ctx)
    held = open_holdout(ctx, "review", CHOICE.read(ctx).sha256).held
    base = draw(held, answers, "base", pairs=settings.review_pairs, seed=seed)
    released = draw(held, answers, "released", pairs=settings.review_pairs, seed=seed)
    # A spreadsheet takes hex digits such as 12e45678 for a number; not behind a letter.
    review_id = f"r{secrets.token_hex(8)}"
    pairs = [*base.pairs, *released.pairs]
    shown, key = shuffle_pairs(pairs, answers)
    REVIEW_PAIRS.write(
        ctx, ReviewSheet(review_id=review_id, instructions=INSTRUCTIONS, pairs=shown)
    )
    REVIEW_KEY.write(ctx, ReviewKey(review_id=review_id, pairs=key))
    with_released = (
        f" and {len(released.pairs)} from {released.different} rows on which those of the "
        "released model do"
        if released.pairs
        else ""
    )
    return ctx.record(
        f"{len(pairs)} blind pairs: {len(base.pairs)} from {base.different} rows on which the "
        f"answers of the base differ{with_released}",
        [
            measure("pairs", len(pairs), "pairs"),
            measure("identical_answers", base.answered - base.different, "rows"),
            measure("pairs_with_base", len(base.pairs), "pairs"),
            measure("pairs_with_released", len(released.pairs), "pairs"),
            measure("strata", len({entry.stratum for entry in key}), "strata"),
        ],
    )
