"""Ask models many prompts, and keep their answers as they come.

A request is known by its key: a hash of all that decides its answer (the model's bytes, the
engine's version and sizes, the messages, the token limit). What has been answered before under the
same key is not asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tuneline.harness.kept_answers import KeptAnswers, request_key
from tuneline.harness.served_models import Candidate, untuned
from tuneline.harness.subjects import Served, Subject
from tuneline.models.cache import cache_root
from tuneline.serving.client import ChatResult, EngineClient, Messages
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext

# Prompts in one batch, between two signs of progress.
CHUNK = 32

TokenIds = Sequence[int]
Batch = tuple[int, list[int]]
Batches = list[Batch]
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
    *,
    known: Mapping[str, str] | None = None,
) -> list[str]:
    """Ask a model all prompts, greedily, and return its answers in order.

    Answers are kept for this run as they come: a step that was killed and is run again asks only
    what is missing.

    Args:
        ctx: the step.
        model: the model, which its engine serves.
        prompts: the messages of each request.
        limits: the largest number of tokens of each answer.
        what: the model's name in the progress.
        known: answers that the model gave elsewhere, by the key of the request.
    """
    subject = Served(model, ctx.config.deployment)
    return _ask(ctx, subject, prompts, limits, what, scope=ctx.run.uri, known=known)[0]


def _ask(
    ctx: StepContext,
    subject: Subject,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
    *,
    scope: str,
    known: Mapping[str, str] | None = None,
) -> tuple[list[str], bool]:
    """Ask through the cache; `scope` is shared by those who may see each other's answers."""
    with KeptAnswers.in_cache(request_key(scope, subject.identity())) as kept_answers:
        return collect(
            subject,
            prompts,
            limits,
            kept_answers,
            known=known,
            progress=lambda batches: ctx.progress(
                batches, len(batches), f"{what}, batches of prompts"
            ),
        )


def keys_of(subject: Subject, prompts: Sequence[Messages], limits: Sequence[int]) -> list[str]:
    """Return the key of each request to a model."""
    identity = subject.identity()
    return [
        request_key(identity, list(map(dict, prompt)), limit)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]


def collect(
    subject: Subject,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    kept_answers: KeptAnswers,
    *,
    known: Mapping[str, str] | None = None,
    progress: Callable[[Batches], Iterable[Batch]] = iter,
) -> tuple[list[str], bool]:
    """Ask a model what it has not been asked, and keep each answer as soon as it is there.

    Args:
        subject: the model.
        prompts: the messages of each request; equal requests are sent once.
        limits: the largest number of tokens of each answer.
        kept_answers: the file of its answers.
        known: more answers of the model, by the key of the request.
        progress: iterates over the batches of requests and shows it.

    Returns:
        The answers in order, and True if none had to be asked for.
    """
    keys = keys_of(subject, prompts, limits)
    found = {key: told[key] for told in (known or {}, kept_answers) for key in keys if key in told}
    missing = {key: at for at, key in enumerate(keys) if key not in found}
    if missing:
        batches = _batches_of_a_limit(sorted(missing.values()), limits)
        with subject.client() as client:
            for limit, numbers in progress(batches):

                def keep(at: int, result: ChatResult, numbers: list[int] = numbers) -> None:
                    kept_answers.add(keys[numbers[at]], result.text)

                results = client.complete_batch(
                    [prompts[number] for number in numbers],
                    concurrency=subject.parallel,
                    max_tokens=limit,
                    on_answer=keep,
                )
                found.update(
                    (keys[n], result.text) for n, result in zip(numbers, results, strict=True)
                )
    return [found[key] for key in keys], not missing


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
    batches = _batches_of_a_limit(range(len(prompts)), limits)
    answers: dict[int, str] = {}
    with Served(model, ctx.config.deployment).client() as client:
        for limit, numbers in ctx.progress(batches, len(batches), f"{what}, batches of prompts"):
            texts = send(client, [prompts[number] for number in numbers], limit)
            answers.update(zip(numbers, texts, strict=True))
    return [answers[number] for number in range(len(prompts))]


def _batches_of_a_limit(numbers: Iterable[int], limits: Sequence[int]) -> Batches:
    """Return batches of requests of one limit each, as the limit and the numbers of requests."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(limits[number], []).append(number)
    return [
        (limit, group[at : at + CHUNK])
        for limit, group in sorted(groups.items())
        for at in range(0, len(group), CHUNK)
    ]


def ask_both(
    ctx: StepContext,
    chosen: Candidate,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    *,
    known: Mapping[str, str] | None = None,
) -> Answers:
    """Ask the candidate and the base the same prompts; see `ask`.

    The base is not asked again what it has answered before, whichever run asked it.
    """
    tuned = ask(ctx, chosen.model, prompts, limits, "tuned model", known=known)
    base, cached = ask_kept(ctx, untuned(ctx), prompts, limits, "base model")
    return Answers(base, tuned, cached)


def ask_kept(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
) -> tuple[list[str], bool]:
    """Ask a model what no run has asked it before; see `ask` for the arguments.

    Returns:
        The answers in order, and True if all came from the cache.
    """
    subject = Served(model, ctx.config.deployment)
    return _ask(ctx, subject, prompts, limits, what, scope="")


def let_continue_kept(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[TokenIds],
    limits: Sequence[int],
    what: str,
) -> tuple[list[str], bool]:
    """Do what `let_continue` does, or take what the model wrote to the very same requests."""
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
    asked = [*Served(model, ctx.config.deployment).identity(), *requests]
    path = cache_root() / "answers" / f"{request_key(*asked)}.json"
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
