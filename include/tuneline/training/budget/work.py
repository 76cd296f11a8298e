"""Count the work of a training run and draw representative micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.config import TrainingConfig
from tuneline.data.rendering.renderer import Renderer
from tuneline.training.budget.estimate import Work, spread_evenly
from tuneline.training.loop.callbacks import evaluation_steps
from tuneline.training.loop.canaries import plant
from tuneline.training.loop.rehearsal import ANSWER_TOKENS, prompts
from tuneline.training.loop.rows import EncodedRow, batch_shape, run_order, total_steps


def plan_work(
    rows: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    tokenizer: Any,
    spec: Mapping[str, Any],
    *,
    micro_batch: int,
    end_to_end: bool,
    samples: int,
) -> tuple[Work, list[list[EncodedRow]], dict[str, float]]:
    """Count the work of a run and draw some of its micro-batches, evenly over their sizes.

    Args:
        rows: training rows without rehearsal rows, whose answers are not written yet.
        validation: rows of each validation pass.
        tokenizer: tokenizer of the base.
        spec: specification of the memory probe.
        micro_batch: rows of a micro-batch.
        end_to_end: True if the rows of a micro-batch lie end to end.
        samples: number of micro-batches to draw.

    Returns:
        The work, the micro-batches, and the `batch_shape` of all of them.
    """
    config = TrainingConfig.model_validate(spec["training"])
    rehearsed = rehearsal_lengths(config.rehearsal_rows, tokenizer, spec["target_format"])
    own = [len(row.ids) for row in rows]
    planted = plant(
        Path(spec["dataset"]),
        config,
        tokenizer,
        spec["target_format"],
        label_field=spec["label_field"],
        longest=max(own),
    )
    lengths = [*own, *rehearsed, *(len(row.ids) for row in planted.rows)]
    steps = total_steps(len(lengths), config.effective_batch, config.epochs, config.max_steps)
    rehearsal = [i >= len(rows) for i in range(len(lengths))]
    order = run_order(lengths, config.effective_batch, steps, config.seed, rehearsal)
    # A stretch of the run is enough to draw from, and a long run has many.
    batches = [order[at : at + micro_batch] for at in range(0, len(order), micro_batch)]
    shape = batch_shape(
        [lengths[i] for i in order], config.effective_batch, micro_batch, end_to_end=end_to_end
    )
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    passes = 1 + len(evaluation_steps(steps, config.evaluations))
    work = Work(
        steps=steps,
        tokens=sum(lengths[i] for i in order),
        validation_tokens=passes * sum(len(row.ids) for row in validation),
    )
    drawn = [batches[i] for i in spread_evenly(sizes, samples)]
    return work, [[_row(rows, lengths, i) for i in batch] for batch in drawn], shape


def _row(rows: Sequence[EncodedRow], lengths: Sequence[int], index: int) -> EncodedRow:
    """Return a row of the run; for a rehearsal row, a dataset row of a similar length."""
    if index < len(rows):
        return rows[index]
    return min(rows, key=lambda row: abs(len(row.ids) - lengths[index]))


def rehearsal_lengths(count: int, tokenizer: Any, target_format: Any) -> list[int]:
    """Return the tokens of each rehearsal row, with the longest answer allowed."""
    if not count:
        return []
    short = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes."}]
        for prompt in prompts()[:count]
    ]
    return [
        len(row.ids) + ANSWER_TOKENS for row in Renderer(tokenizer, target_format).render(short)
    ]
