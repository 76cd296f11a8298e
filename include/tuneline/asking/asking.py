"""Ask models many prompts, and keep their answers as they come.

A model is bytes that an engine here serves, or an endpoint that runs already. Both are asked
through an `EngineClient`, so that whoever asks need not know which it is.

A request is known by its key: a hash of all that decides its answer (the bytes of the model, the
version and sizes of the engine, the messages, the token limit). What has been answered before under
the same key is not asked again. Answers are kept in a file that only grows. Each is appended as
soon as it is there, in one write that ends with a line break. A process that is killed therefore
loses the requests that were under way and no answer before them. What is not a whole line (the last
one of a process that died while it wrote, or of a full disk) counts as not there. Several processes
may append to one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from tuneline.asking.models import Candidate, scoring_threads, serve, untuned
from tuneline.config import DeploymentConfig
from tuneline.errors import UserError
from tuneline.models.cache import cache_root
from tuneline.serving.client.chat_protocol import ChatResult, Messages
from tuneline.serving.client.client import EngineClient
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import ServedModel
from tuneline.step_context import StepContext

# A file of the cache that nobody has used for so long is removed, seconds.
KEPT_SECONDS = 60 * 24 * 3600.0


def request_key(*parts: Any) -> str:
    """Return the key of a request: a hash of all that decides its answer, as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class KeptAnswers(Mapping[str, str]):
    """The answers in a file, by the keys of their requests.

    Args:
        path: the file; it and its folder are made with the first answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._answers: dict[str, str] = {}
        if path.is_file():
            # The clock of its last use, for `in_cache`.
            path.touch()
            self._answers.update(filter(None, map(_answer, path.read_bytes().split(b"\n"))))

    @classmethod
    def in_cache(cls, name: str) -> KeptAnswers:
        """Return the file of that name in the cache; remove those that nobody uses any more."""
        folder = cache_root() / "answers"
        _forget_unused(folder)
        return cls(folder / f"{name}.jsonl")

    def __getitem__(self, key: str) -> str:
        """Return the answer to a request."""
        return self._answers[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, key: str, answer: str) -> None:
        """Append an answer."""
        if self._file is None:
            self._file = self._open()
        line = json.dumps([key, answer], ensure_ascii=True).encode() + b"\n"
        os.write(self._file, line)
        self._answers[key] = answer

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # Otherwise the next answer would continue the torn line, and be lost with it.
            os.write(file, b"\n")
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _answer(line: bytes) -> tuple[str, str] | None:
    """Return the key and the answer of a line; None if it is not a whole one."""
    try:
        key, answer = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, answer) if isinstance(key, str) and isinstance(answer, str) else None


def _forget_unused(folder: Path) -> None:
    if not folder.is_dir():
        return
    oldest = time.time() - KEPT_SECONDS
    for path in folder.glob("*.jsonl"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            # Another process was faster.
            continue


_ENDPOINT = re.compile(r"(?P<url>https?://[^#]+?)/?(?:/v1/?)?(?:#(?P<model>.+))?$")


class Subject(Protocol):
    """A model that can be asked."""

    @property
    def parallel(self) -> int:
        """Requests that are sent at once."""

    def identity(self) -> list[Any]:
        """Return all that decides its answers beside the requests, as JSON."""

    def client(self) -> AbstractContextManager[EngineClient]:
        """Make it ready, and return a client of it; leaving the context ends what was started."""


@dataclass(frozen=True)
class Served:
    """Bytes that their engine serves here, with the slots and the context of a deployment."""

    model: ServedModel
    deployment: DeploymentConfig

    @property
    def parallel(self) -> int:
        """The deployment's slots."""
        return self.deployment.parallel

    def identity(self) -> list[Any]:
        """Return the hash of the bytes, the engine's version and the sizes it is started with."""
        version = get_engine(self.model.engine).version()
        sizes = [self.deployment.parallel, self.deployment.context_tokens]
        return [self.model.sha256, version, *sizes]

    @contextmanager
    def client(self) -> Iterator[EngineClient]:
        """Start the engine.

        Raises:
            UserError: if it can't be started here.
            TunelineError: if it does not answer.
        """
        with (
            serve(self.model, self.deployment, threads=scoring_threads()) as server,
            server.client() as client,
        ):
            yield client


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint that somebody else runs: a gateway, an engine, an API.

    Attributes:
        url: `http://host:port`, without `/v1`.
        model: the model id that requests ask for.
        api_key: its key; None for an endpoint that asks for none.
        parallel: requests that are sent at once.
    """

    url: str
    model: str
    api_key: str | None = None
    parallel: int = 4

    def identity(self) -> list[Any]:
        """Return its address and model id. The bytes behind them may change unseen."""
        return ["endpoint", self.url, self.model]

    def client(self) -> EngineClient:
        """Return a client; nothing is started."""
        return EngineClient(self.url, model=self.model, api_key=self.api_key)


def endpoint_of(address: str, api_key_env: str | None, parallel: int) -> Endpoint:
    """Return the endpoint that an address names.

    Args:
        address: `https://host/v1#MODEL_ID`.
        api_key_env: environment variable with its key; None for an endpoint that asks for none.
        parallel: requests that are sent at once.

    Raises:
        UserError: if the address names no model, or the variable is not set.
    """
    found = _ENDPOINT.match(address)
    if found is None or not found["model"]:
        raise UserError(
            f"{address}: name the model behind the endpoint, as in https://host/v1#MODEL_ID"
        )
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise UserError(f"--api-key-env {api_key_env}: the variable is not set")
    return Endpoint(found["url"], found["model"], key, parallel)


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
