"""Ask models many prompts, and keep the answers of those that do not change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tuneline.harness.served_models import Candidate, scoring_threads, serve, untuned
from tuneline.models.cache import cache_root
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.client.client import EngineClient
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import ServedModel

# Prompts in one batch, between two signs of progress.
CHUNK = 32

TokenIds = Sequence[int]
Prompt = TypeVar("Prompt")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Answers:
    """The answers of both models to the same prompts, in their order.

    `base_cached` is True if those of the base came from the cache.
    """

    base: list[str]
    tuned: list[str]
    base_cached: bool


def ask(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
) -> list[str]:
    """Ask a model all prompts, greedily, and return its answers in order.

    Args:
        ctx: the step.
        model: the model, which its engine serves.
        prompts: the messages of each request.
        limits: the largest number of tokens of each answer.
        what: the model's name in the progress.
    """

    def send(client: EngineClient, batch: Sequence[Messages], limit: int) -> list[str]:
        parallel = ctx.config.deployment.parallel
        results = client.complete_batch(batch, concurrency=parallel, max_tokens=limit)
        return [result.text for result in results]

    return _in_batches(ctx, model, prompts, limits, what, send=send)


def let_continue(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[TokenIds],
    limits: Sequence[int],
    what: str,
) -> list[str]:
    """Let a model go on from token ids, greedily, and return its texts in order.

    Args:
        ctx: the step.
        model: the model, which its engine serves.
        prompts: the token ids of each request, of any part of a rendered row.
        limits: the largest number of tokens of each continuation.
        what: the model's name in the progress.
    """

    def send(client: EngineClient, batch: Sequence[TokenIds], limit: int) -> list[str]:
        parallel = ctx.config.deployment.parallel
        return client.continue_batch(batch, concurrency=parallel, max_tokens=limit)

    return _in_batches(ctx, model, prompts, limits, what, send=send)


def _in_batches(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Prompt],
    limits: Sequence[int],
    what: str,
    *,
    send: Callable[[EngineClient, Sequence[Prompt], int], list[str]],
) -> list[str]:
    """Serve a model and send it the prompts in batches of one limit each."""
    groups: dict[int, list[int]] = {}
    for number, limit in enumerate(limits):
        groups.setdefault(limit, []).append(number)
    batches = [
        (limit, group[at : at + CHUNK])
        for limit, group in sorted(groups.items())
        for at in range(0, len(group), CHUNK)
    ]
    answers: dict[int, str] = {}
    with (
        serve(model, ctx.config.deployment, threads=scoring_threads()) as server,
        server.client() as client,
    ):
        for limit, numbers in ctx.progress(batches, len(batches), f"{what}, batches of prompts"):
            texts = send(client, [prompts[number] for number in numbers], limit)
            answers.update(zip(numbers, texts, strict=True))
    return [answers[number] for number in range(len(prompts))]


def ask_both(
    ctx: StepContext, chosen: Candidate, prompts: Sequence[Messages], limits: Sequence[int]
) -> Answers:
    """Ask the candidate and the base the same prompts; see `ask`.

    The base is not asked again if it has answered the very same prompts before.
    """
    tuned = ask(ctx, chosen.model, prompts, limits, "tuned model")
    base, cached = ask_kept(ctx, untuned(ctx), prompts, limits, "base model")
    return Answers(base, tuned, cached)


def ask_kept(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
) -> tuple[list[str], bool]:
    """Ask a model, or take the answers that it gave to the very same prompts before.

    The cache is keyed by everything that decides an answer: the hash of the model's bytes, the
    engine's version and limits, the prompts and their token limits. See `ask` for the arguments.

    Returns:
        The answers in order, and True if they came from the cache.
    """
    messages = [list(map(dict, prompt)) for prompt in prompts]
    return kept(
        ctx, model, [messages, list(limits)], what, lambda: ask(ctx, model, prompts, limits, what)
    )


def let_continue_kept(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[TokenIds],
    limits: Sequence[int],
    what: str,
) -> tuple[list[str], bool]:
    """Do what `let_continue` does, with the cache of `ask_kept`."""
    return kept(
        ctx,
        model,
        [list(map(list, prompts)), list(limits)],
        what,
        lambda: let_continue(ctx, model, prompts, limits, what),
    )


def kept(
    ctx: StepContext,
    model: ServedModel,
    requests: list[Any],
    what: str,
    answer: Callable[[], list[Answer]],
) -> tuple[list[Answer], bool]:
    """Return what a model answers to requests, or what it answered to the same ones before.

    Args:
        ctx: the step.
        model: the model.
        requests: all that decides the answers beside model and engine, as JSON.
        what: the model's name in the log.
        answer: asks the model; its answers must be JSON.

    Returns:
        The answers in order, and True if they came from the cache.
    """
    deployment = ctx.config.deployment
    asked: list[Any] = [model.sha256, get_engine(model.engine).version()]
    asked += [deployment.parallel, deployment.context_tokens, *requests]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = cache_root() / "answers" / f"{key}.json"
    if path.is_file():
        try:
            return list(json.loads(path.read_text())), True
        except ValueError:
            ctx.log(f"{path} is damaged; the {what} is asked again")
    answers = answer()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(answers, ensure_ascii=False))
    staged.replace(path)
    return answers, False
