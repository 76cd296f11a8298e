"""Ask models many prompts, and keep their answers as they come.

A request is known by its key: a hash of all that decides its answer. What has been answered under
the same key is not asked again. Each answer is appended to a file at once, in one write that ends
with a line break, so a killed process loses none that were there, and several may append to one
file; what is not a whole line counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from tuneline.asking.models import (
    built_to_measure,
    engine_of,
    request_for,
    scoring_threads,
    server_of,
)
from tuneline.config import DeploymentConfig
from tuneline.errors import UserError
from tuneline.models.cache import cache_root
from tuneline.serving.client import EngineClient, Messages
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.divergence import ScoredRow
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext

# A file of the cache that nobody has used for so long is removed, seconds.
KEPT_SECONDS = 60 * 24 * 3600.0


class Answer(str):
    """The text of an answer; `cut` is True where the limit of tokens ended it."""

    __slots__ = ("cut",)
    cut: bool

    def __new__(cls, text: str, *, cut: bool = False) -> Self:
        """Make an answer of its text."""
        answer = super().__new__(cls, text)
        answer.cut = cut
        return answer


def request_key(*parts: Any) -> str:
    """Return the key of a request: a hash of all that decides its answer, as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class KeptAnswers(dict[str, Any]):
    """Answers, or losses, in a file (made with the first one) by the keys of their requests."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._file: int | None = None
        if path.is_file():
            # The clock of its last use, for `in_cache`.
            path.touch()
            self.update(filter(None, map(_answer, path.read_bytes().split(b"\n"))))

    @classmethod
    def in_cache(cls, name: str) -> KeptAnswers:
        """Return the file of that name in the cache; remove those that nobody uses any more."""
        folder = cache_root() / "answers"
        _forget_unused(folder)
        return cls(folder / f"{name}.jsonl")

    def add(self, key: str, answer: str | float) -> None:
        """Append an answer, a text without `cut` as a whole one."""
        if self._file is None:
            self._file = self._open()
        entry = [key, answer, *([getattr(answer, "cut", False)] * isinstance(answer, str))]
        os.write(self._file, json.dumps(entry, ensure_ascii=True).encode() + b"\n")
        self[key] = answer

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

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _answer(line: bytes) -> tuple[str, Answer | float] | None:
    """Return the key and the answer of a line; None if it is not a whole one."""
    with suppress(ValueError):
        match json.loads(line):
            case [str(key), float(loss)]:
                return key, loss
            case [str(key), str(text), bool(cut)]:
                return key, Answer(text, cut=cut)
    return None


def _forget_unused(folder: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for path in folder.glob("*.json*"):
        # Another process may be faster.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


_ENDPOINT = re.compile(r"(?P<url>https?://[^#]+?)/?(?:/v1/?)?(?:#(?P<model>.+))?$")


@dataclass(frozen=True)
class LocalModel:
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
        """Start the engine; TunelineError if it can't be started here, or does not answer."""
        with (
            server_of(self.model, self.deployment, threads=scoring_threads()) as server,
            server.client() as client,
        ):
            yield client


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint that somebody else runs, at `http://host:port`; no `/v1`."""

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


# A model that can be asked.
Subject = LocalModel | Endpoint


def endpoint_of(address: str, api_key_env: str | None, parallel: int) -> Endpoint:
    """Return the endpoint that an address, `https://host/v1#MODEL_ID`, names.

    UserError if it names no model, or the variable of its key is not set.
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
# Sends requests of one limit by their numbers, and says each answer as soon as it is there.
Send = Callable[[EngineClient, list[int], int, Callable[[int, Answer], None]], object]


def ask(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
    *,
    known: Mapping[str, Answer] | None = None,
) -> list[Answer]:
    """Ask a model all prompts, greedily, within `limits` of tokens; return its answers in order.

    Answers are kept for this run as they come: a step that was killed and is run again asks only
    what is missing. `known` are answers given elsewhere, by the key of the request.
    """
    subject = LocalModel(model, ctx.config.deployment)
    with kept_by(subject, ctx.run.uri) as kept_answers:
        progress = progress_of(ctx, what)
        return collect(subject, prompts, limits, kept_answers, known=known, progress=progress)[0]


def ask_kept(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
) -> tuple[list[Answer], bool]:
    """Ask what no run has asked the model before (see `ask`); True if all came from the cache."""
    subject = LocalModel(model, ctx.config.deployment)
    with kept_by(subject) as kept_answers:
        return collect(subject, prompts, limits, kept_answers, progress=progress_of(ctx, what))


def kept_by(subject: Subject, scope: str = "") -> KeptAnswers:
    """Return the kept answers of a model; `scope` is shared by those who may see them."""
    return KeptAnswers.in_cache(request_key(scope, subject.identity()))


def progress_of(ctx: StepContext, what: str) -> Callable[[Batches], Iterable[Batch]]:
    """Return what says how far the batches of prompts are."""
    return lambda batches: ctx.progress(batches, len(batches), f"{what}, batches of prompts")


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
    known: Mapping[str, Answer] | None = None,
    progress: Callable[[Batches], Iterable[Batch]] = iter,
) -> tuple[list[Answer], bool]:
    """Ask a model what it has not been asked, each request once, and keep each answer at once.

    `known` are more of its answers, by key. Returns the answers in order, and True if none had to
    be asked for.
    """

    def send(
        client: EngineClient, numbers: list[int], limit: int, arrived: Callable[[int, Answer], None]
    ) -> None:
        client.complete_batch(
            [prompts[number] for number in numbers],
            concurrency=subject.parallel,
            max_tokens=limit,
            on_answer=lambda at, result: arrived(numbers[at], Answer(result.text, cut=result.cut)),
        )

    keys = keys_of(subject, prompts, limits)
    answers = {**kept_answers, **(known or {})}
    add = kept_answers.add
    return _missing_alone(subject, keys, limits, answers, keep=add, send=send, progress=progress)


def continue_tokens(
    ctx: StepContext,
    model: ServedModel,
    prompts: Sequence[TokenIds],
    limits: Sequence[int],
    what: str,
    *,
    shared: bool = False,
) -> tuple[list[Answer], bool]:
    """Let a model go on from token ids of any part of a rendered row, greedily.

    `shared` keeps the texts, and takes those that any run has kept. Those of a candidate are not
    kept: they may hold what nobody should keep. Returns the texts, and True if all were kept.
    """
    subject = LocalModel(model, ctx.config.deployment)
    identity = subject.identity()
    keys = [
        request_key(identity, "continue", list(ids), limit)
        for ids, limit in zip(prompts, limits, strict=True)
    ]

    def send(
        client: EngineClient, numbers: list[int], limit: int, arrived: Callable[[int, Answer], None]
    ) -> None:
        batch = [prompts[number] for number in numbers]
        texts = client.continue_batch(batch, concurrency=subject.parallel, max_tokens=limit)
        for number, text in zip(numbers, texts, strict=True):
            arrived(number, Answer(text))

    ask_for = partial(
        _missing_alone, subject, keys, limits, send=send, progress=progress_of(ctx, what)
    )
    if not shared:
        return ask_for({}, keep=lambda *_: None)
    with kept_by(subject) as kept_answers:
        return ask_for(kept_answers, keep=kept_answers.add)


def losses(
    ctx: StepContext,
    model: ServedModel,
    sequences: Sequence[Sequence[int]],
    scored: Sequence[Sequence[bool]],
    what: str,
    *,
    shared: bool = False,
) -> tuple[list[float] | None, bool]:
    """Measure a model's loss, in nats, on the `scored` tokens of each sequence.

    `shared` keeps the losses, and takes those that any run has kept. None if the engine reports no
    probability of given tokens; True if all came from the cache.
    """
    subject = LocalModel(model, ctx.config.deployment)
    request = request_for(model, ctx.config.deployment, threads=scoring_threads())

    def measured(numbers: Sequence[int]) -> list[float] | None:
        ctx.log(f"{what}: losses of {len(numbers)} texts")
        rows = [ScoredRow.marked(sequences[n], scored[n]) for n in numbers]
        engine = engine_of(ctx)
        found = engine.losses(model.path, rows, request)
        if found is None and engine.form == "engine":
            found = engine.losses(built_to_measure(ctx, engine), rows, request)
        return None if found is None else [sum(row) for row in found]

    if not shared:
        return measured(range(len(sequences))), False
    identity = subject.identity()
    keys = [
        request_key(identity, "losses", list(ids), list(flags))
        for ids, flags in zip(sequences, scored, strict=True)
    ]
    with kept_by(subject) as kept_answers:
        missing = [number for number, key in enumerate(keys) if key not in kept_answers]
        found = measured(missing) if missing else []
        if found is None:
            return None, False
        for number, loss in zip(missing, found, strict=True):
            kept_answers.add(keys[number], loss)
        return [kept_answers[key] for key in keys], not missing


def _missing_alone(
    subject: Subject,
    keys: Sequence[str],
    limits: Sequence[int],
    answers: Mapping[str, Answer],
    *,
    keep: Callable[[str, Answer], object],
    send: Send,
    progress: Callable[[Batches], Iterable[Batch]],
) -> tuple[list[Answer], bool]:
    """Ask what has no answer yet; return all answers in order, and True if nothing was asked."""
    found = {key: answers[key] for key in keys if key in answers}
    missing = {key: at for at, key in enumerate(keys) if key not in found}

    def arrived(number: int, answer: Answer) -> None:
        found[keys[number]] = answer
        keep(keys[number], answer)

    if missing:
        with subject.client() as client:
            for limit, numbers in progress(_batches_of_a_limit(sorted(missing.values()), limits)):
                send(client, numbers, limit, arrived)
    return [found[key] for key in keys], not missing


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
