"""Answers to validation rows with the log-probabilities of their tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuneline.artifacts.governance import Confidence
from tuneline.data.tables.rows import Row
from tuneline.harness.answers import Task
from tuneline.harness.asking import CHUNK
from tuneline.harness.kept_answers import KeptAnswers, request_key
from tuneline.harness.subjects import Served
from tuneline.serving.client.chat_protocol import ChatResult
from tuneline.serving.engines.base import ServedModel
from tuneline.serving.gateway.confidence import mean_logprob
from tuneline.step_context import StepContext

Told = tuple[str, list[float]]


def ask_for_confidence(
    ctx: StepContext, model: ServedModel, rows: Sequence[Row], max_tokens: int
) -> list[Told]:
    """Ask a model rows greedily; return each answer with its tokens' log-probabilities, in nats.

    Answers are kept for this run as they come, so that a step that is run again asks only what
    is missing.

    Args:
        ctx: the step.
        model: the model, which its engine serves.
        rows: the rows.
        max_tokens: limit of an answer's length.
    """
    subject = Served(model, ctx.config.deployment)
    scope = request_key(ctx.run.uri, subject.identity(), "log-probabilities")
    keys = [request_key(list(map(dict, row.prompt)), max_tokens) for row in rows]
    with KeptAnswers.in_cache(scope) as kept:
        missing = [at for at, key in enumerate(keys) if key not in kept]
        if missing:
            batches = [missing[at : at + CHUNK] for at in range(0, len(missing), CHUNK)]
            with subject.client() as client:
                for batch in ctx.progress(batches, len(batches), "calibration, batches of rows"):

                    def keep(at: int, result: ChatResult, batch: list[int] = batch) -> None:
                        values = [token.logprob for token in result.logprobs]
                        kept.add(keys[batch[at]], json.dumps([result.text, values]))

                    client.complete_batch(
                        [rows[at].prompt for at in batch],
                        concurrency=subject.parallel,
                        max_tokens=max_tokens,
                        logprobs=True,
                        # llama.cpp sends twenty alternatives of each token otherwise.
                        extra={"top_logprobs": 1},
                        on_answer=keep,
                    )
        told = [json.loads(kept[key]) for key in keys]
    return [(str(text), list(values)) for text, values in told]


def confidences(
    rows: Sequence[Row], told: Sequence[Told], task: Task, window: int
) -> list[Confidence]:
    """Judge the answers.

    Args:
        rows: the rows.
        told: the answer to each.
        task: the rule by which an answer is right.
        window: the first tokens of a stream that are judged.
    """
    return [
        Confidence(
            row_id=row.row_id,
            right=task.right(text, row.answer),
            tokens=len(values),
            whole=mean_logprob(values),
            beginning=mean_logprob(values[:window]),
        )
        for row, (text, values) in zip(rows, told, strict=True)
    ]
