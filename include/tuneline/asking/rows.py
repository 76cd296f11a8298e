"""Rows of the run's dataset as models are asked them: a prompt and its expected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from tuneline.artifacts.data import DATASET, DATASET_VERSION
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import TRAIN, VALIDATION, Message, Row, read_dataset
from tuneline.errors import UserError
from tuneline.run import Run
from tuneline.step_context import StepContext

# Training rows that a quantisation may calibrate on.
CALIBRATION_ROWS = 256
# Tokens that the template adds around a turn.
TEMPLATE_TOKENS = 16


def answer_limit(run: Run) -> int:
    """Return the limit of an answer, in tokens: the one that is set, or what the rows need.

    Next to the longest prompt, an engine gives what the context has left.

    UserError if none is set and final_audit, which counts the tokens of answers, was not run.
    """
    if (limit := run.config.evaluation.max_new_tokens) is not None:
        return limit
    needed = document.format if (document := DATASET_VERSION.find(run)) else None
    if needed is None or needed.answer_tokens_max is None:
        raise UserError("final_audit did not count the tokens of answers; run it first")
    return max(needed.answer_tokens_max, min(needed.answer_limit, answer_room(run)))


def answer_room(run: Run) -> int:
    """Return how many tokens the context has left next to the longest prompt of the dataset."""
    needed = document.format if (document := DATASET_VERSION.find(run)) else None
    prompt = needed.prompt_tokens_max if needed else None
    return run.config.deployment.context_tokens - (prompt or 0)


def dataset_rows(ctx: StepContext) -> list[Row]:
    """Read the training and validation rows of the run's dataset.

    Those of the hold-out come from `evaluation.scoring.ledger.open_holdout` alone.
    """
    rows, _ = read_dataset(DATASET.fetch(ctx))
    return rows


def validation_rows(ctx: StepContext, count: int | None = None, *, need: int = 1) -> list[Row]:
    """Draw at most `count` rows of the validation split evenly over their labels; see `spread`.

    Every step of a run that draws as many gets the same ones. UserError if there are too few.
    """
    rows = of_split(dataset_rows(ctx), VALIDATION)
    if len(rows) < need:
        raise UserError(
            f"{ctx.step} needs at least {need} validation rows, the dataset has {len(rows)}; "
            "raise data.validation_share or give more rows"
        )
    return spread(rows, len(rows) if count is None else count, ctx.config.training.seed)


def trial_prompts(ctx: StepContext, count: int) -> list[list[Message]]:
    """Return prompts of validation rows, repeated if there are fewer than `count`."""
    rows = validation_rows(ctx, count)
    return [rows[number % len(rows)].prompt for number in range(count)]


def calibration_texts(rows: Sequence[Row], renderer: Renderer) -> list[str]:
    """Return the rendered training rows that quantisations calibrate on."""
    trained = [row for row in rows if row.split == TRAIN][:CALIBRATION_ROWS]
    return [renderer.text(row.messages) for row in trained]


def tokens_at_most(text: str) -> int:
    """Return more tokens than a turn is likely to have: one for two bytes, and the template's."""
    return len(text.encode()) // 2 + TEMPLATE_TOKENS


def asked(row: Row) -> str:
    """Return all turns of a row's prompt but the system turn, which rows share."""
    return "\n".join(turn["content"] for turn in row.prompt if turn["role"] != "system")


def turns_of(row: Row) -> list[Row]:
    """Return a row for each answer that training learns of a row, the last one as it is.

    The earlier ones have the id `…#turn0`, `…#turn1`, … and no label.
    """
    learned = row.messages[:-1] if row.served_by is None else []
    places = [n for n, turn in enumerate(learned) if turn["role"] == "assistant"]
    earlier = [
        replace(row, row_id=f"{row.row_id}#turn{k}", messages=row.messages[: n + 1], label=None)
        for k, n in enumerate(places)
    ]
    return [*earlier, row]


def of_split(rows: Sequence[Row], split: str) -> list[Row]:
    """Return the rows of one split, in order."""
    return [row for row in rows if row.split == split]


def spread(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Draw rows evenly over the labels, the same ones for the same seed.

    Takes a row of each label in turn. Within a label the order follows a hash of the seed
    and the row's id, so that added rows disturb the draw little.
    """

    def order(row: Row) -> str:
        return sha256(f"{seed}:{row.row_id}".encode()).hexdigest()

    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=order):
        groups.setdefault(row.label or "", []).append(row)
    drawn: list[Row] = []
    queues = [groups[label] for label in sorted(groups)]
    while len(drawn) < min(count, len(rows)):
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop(0))
    return drawn
