"""Ask the same prompts again and again: alone, in batches of other companions, after a restart."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tuneline.asking.models import scoring_threads, server_of
from tuneline.data.tables.rows import Row
from tuneline.serving.client import ChatResult, EngineClient
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext

ALONE, BATCHED, RESTARTED = MODES = ("alone", "batched", "restarted")


@dataclass(frozen=True)
class RepeatPlan:
    """How prompts are repeated: times alone and in batches, and tokens that are compared."""

    repeats: int
    parallel: int
    max_tokens: int


@dataclass(frozen=True)
class Repeats:
    """All answers to the prompt of a row; the first one alone is the reference."""

    row_id: str
    alone: Sequence[str]
    batched: Sequence[str]
    restarted: Sequence[str] = ()

    def compared(self, mode: str) -> Sequence[str]:
        """Return the answers of a mode, without the reference."""
        answers: Sequence[str] = getattr(self, mode)
        return answers[1:] if mode == ALONE else answers


class RepeatedAnswers:
    """The answers to some rows, as they come; `cut` are those that reached the limit of tokens."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.cut: set[str] = set()
        self._texts = {row.row_id: {mode: list[str]() for mode in MODES} for row in rows}

    def add(self, row: Row, mode: str, result: ChatResult) -> None:
        """Take an answer to one of the rows."""
        self._texts[row.row_id][mode].append(result.text)
        if result.cut:
            self.cut.add(result.text)

    def repeats(self) -> list[Repeats]:
        """Return the answers to each row that has one, in the order of the rows."""
        return [
            Repeats(name, **texts) for name, texts in self._texts.items() if any(texts.values())
        ]


@contextmanager
def _serving(ctx: StepContext, model: ServedModel, parallel: int) -> Iterator[EngineClient]:
    threads = scoring_threads()
    with (
        server_of(model, ctx.config.deployment, threads=threads, parallel=parallel) as server,
        server.client() as client,
    ):
        yield client


def ask(ctx: StepContext, model: ServedModel, plan: RepeatPlan, answers: RepeatedAnswers) -> None:
    """Ask rows in every mode; what came before an error of the server stays in the answers."""
    prompts = f"{len(answers.rows)} prompts"
    with _serving(ctx, model, plan.parallel) as client:
        ctx.log(f"asking {prompts} {plan.repeats} times alone")
        for _ in range(plan.repeats):
            _ask_alone(client, plan, answers, ALONE)
        ctx.log(f"asking {prompts} {plan.repeats} times in batches of {plan.parallel}")
        for turn in range(plan.repeats):
            _ask_together(client, plan, answers, turn)
    ctx.log(f"asking {prompts} after a restart of the server")
    with _serving(ctx, model, plan.parallel) as client:
        _ask_alone(client, plan, answers, RESTARTED)


def _ask_alone(client: EngineClient, plan: RepeatPlan, answers: RepeatedAnswers, mode: str) -> None:
    for row in answers.rows:
        answers.add(row, mode, client.chat(row.prompt, max_tokens=plan.max_tokens))


def _ask_together(
    client: EngineClient, plan: RepeatPlan, answers: RepeatedAnswers, turn: int
) -> None:
    """Ask all rows in this turn's order, so that each has other companions."""
    order = list(answers.rows)
    random.Random(turn).shuffle(order)  # noqa: S311 - the same batches in every run
    # The last ones would be answered with fewer and fewer next to them.
    company = order[: plan.parallel - 1]
    results = client.complete_batch(
        [row.prompt for row in (*order, *company)],
        concurrency=plan.parallel,
        max_tokens=plan.max_tokens,
    )
    for row, result in zip(order, results, strict=False):
        answers.add(row, BATCHED, result)
