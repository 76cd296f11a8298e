"""Ask the same prompts again and again: alone, in batches of other companions, after a restart."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tuneline.data.tables.rows import Row
from tuneline.serving.client import ChatResult, EngineClient

ALONE, BATCHED, RESTARTED = MODES = ("alone", "batched", "restarted")


@dataclass(frozen=True)
class Setting:
    """A change of requests or server that may make answers repeat themselves.

    Attributes:
        name: how a person makes the change.
        extra: fields of each request.
        environment: variables of the server's process.
        parallel: slots of the server; None leaves those of the plan.
    """

    name: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    parallel: int | None = None


AS_CONFIGURED = Setting("as configured")
# Starts a server with a setting, and gives a client of it.
Serving = Callable[[Setting], AbstractContextManager[EngineClient]]


@dataclass(frozen=True)
class Plan:
    """How prompts are repeated.

    Attributes:
        repeats: times that each prompt is asked alone, and in batches.
        parallel: requests of a batch.
        max_tokens: tokens of an answer that are compared.
        restart: whether the server is started again and every prompt asked once more.
    """

    repeats: int
    parallel: int
    max_tokens: int
    restart: bool = True


@dataclass(frozen=True)
class Repeats:
    """All answers to one prompt.

    Attributes:
        row_id: the row whose prompt was asked.
        alone: the answers to the prompt alone; the first is the reference.
        batched: the answers to the prompt among others.
        restarted: the answers to the prompt alone, after a restart of the server.
    """

    row_id: str
    alone: tuple[str, ...]
    batched: tuple[str, ...]
    restarted: tuple[str, ...] = ()

    def compared(self, mode: str) -> tuple[str, ...]:
        """Return the answers of a mode, without the reference."""
        answers: tuple[str, ...] = getattr(self, mode)
        return answers[1:] if mode == ALONE else answers


class Answers:
    """The answers to some rows, as they come.

    Attributes:
        cut: the answers that reached the limit of tokens.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.cut: set[str] = set()
        self._texts: dict[str, dict[str, list[str]]] = {row.row_id: {} for row in rows}

    def add(self, row: Row, mode: str, result: ChatResult) -> None:
        """Take an answer; one to another row is left out."""
        if row.row_id not in self._texts:
            return
        self._texts[row.row_id].setdefault(mode, []).append(result.text)
        if result.finish_reason == "length":
            self.cut.add(result.text)

    def repeats(self) -> list[Repeats]:
        """Return the answers to each row that has one, in the order of the rows."""
        return [
            Repeats(row_id, *(tuple(texts.get(mode, ())) for mode in MODES))
            for row_id, texts in self._texts.items()
            if texts
        ]


def ask(
    serving: Serving,
    everyone: Sequence[Row],
    plan: Plan,
    answers: Answers,
    *,
    setting: Setting = AS_CONFIGURED,
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Ask rows in every mode; what came before an error stays in the answers.

    Args:
        serving: starts a server.
        everyone: the rows of the batches: those of `answers` and their companions.
        plan: how often, and how many at once.
        answers: takes the answers to its rows.
        setting: what is changed.
        log: takes a line of progress.

    Raises:
        TunelineError: if the server does not start or stops answering.
    """
    with serving(setting) as client:
        log(f"asking {len(answers.rows)} prompts {plan.repeats} times alone")
        for _ in range(plan.repeats):
            _ask_alone(client, plan, answers, ALONE, setting)
        log(f"asking {len(everyone)} prompts {plan.repeats} times in batches of {plan.parallel}")
        for turn in range(plan.repeats):
            _ask_together(client, everyone, plan, answers, setting=setting, turn=turn)
    if plan.restart:
        log(f"asking {len(answers.rows)} prompts after a restart of the server")
        with serving(setting) as client:
            _ask_alone(client, plan, answers, RESTARTED, setting)


def _ask_alone(
    client: EngineClient, plan: Plan, answers: Answers, mode: str, setting: Setting
) -> None:
    for row in answers.rows:
        result = client.chat(row.prompt, max_tokens=plan.max_tokens, extra=setting.extra)
        answers.add(row, mode, result)


def _ask_together(
    client: EngineClient,
    everyone: Sequence[Row],
    plan: Plan,
    answers: Answers,
    *,
    setting: Setting,
    turn: int,
) -> None:
    """Ask all rows in an order of this turn's own, so that each has other companions."""
    order = list(everyone)
    random.Random(turn).shuffle(order)  # noqa: S311 - the same batches in every run
    # The last ones would be answered with fewer and fewer beside them.
    company = order[: plan.parallel - 1]
    results = client.complete_batch(
        [row.prompt for row in (*order, *company)],
        concurrency=plan.parallel,
        max_tokens=plan.max_tokens,
        extra=setting.extra,
    )
    for row, result in zip(order, results, strict=False):
        answers.add(row, BATCHED, result)
