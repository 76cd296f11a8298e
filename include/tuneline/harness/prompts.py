"""Prompts for trials of the serving side: real ones of the dataset, never of the hold-out."""

from __future__ import annotations

from tuneline.errors import UserError
from tuneline.run import StepContext

Messages = list[dict[str, str]]


def trial_prompts(ctx: StepContext, count: int) -> list[Messages]:
    """Conversations of the validation split up to their last user turn.

    Args:
        ctx: the step.
        count: how many; the split is repeated when it has fewer.

    Raises:
        UserError: the validation split is empty.
    """
    import pyarrow.parquet as pq

    path = ctx.input("distribution_balancing", "dataset.parquet")
    rows = pq.read_table(path, columns=["messages", "split"]).to_pylist()
    prompts: list[Messages] = []
    for row in rows:
        turns = row["messages"]
        if row["split"] == "validation" and turns and turns[-1]["role"] == "assistant":
            prompts.append([dict(turn) for turn in turns[:-1]])
    if not prompts:
        raise UserError(
            "the dataset has no validation rows to try the server with; "
            "raise data.validation_share or give more rows"
        )
    return [prompts[n % len(prompts)] for n in range(count)]
