"""The two models that evaluation compares, as files and as running servers.

The candidate is the `model.gguf` that production_quantization chose: exactly the bytes that
ship. The base is the untuned model in f16, exported once into the cache. Both answer through
llama.cpp's server over a socket, as in production.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tuneline.artifacts.deployment import CHOICE, MODEL
from tuneline.bases import base_of
from tuneline.config import PipelineConfig
from tuneline.errors import TunelineError
from tuneline.gguf.export import export_gguf
from tuneline.machine.cores import available_cores, default_threads
from tuneline.models.base_model import BaseModel
from tuneline.models.cache import Log, cache_root, cached_model
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import Messages
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.store import sha256_file

# Prompts in one batch, between two signs of progress.
CHUNK = 32
# Below this load average another thread gains more than it costs.
QUIET_LOAD = 0.5


@dataclass(frozen=True)
class ModelFile:
    """A GGUF file and its hash."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Candidate:
    """The model that ships if it passes.

    Attributes:
        file: its bytes.
        variant: the quantisation that was chosen.
        judged_on: ids of the rows that the choice was made on.
    """

    file: ModelFile
    variant: str
    judged_on: frozenset[str]


@dataclass(frozen=True)
class Answers:
    """The answers of both models to the same prompts, in their order.

    `base_cached` is True if those of the base came from the cache.
    """

    base: list[str]
    tuned: list[str]
    base_cached: bool


def candidate(ctx: StepContext) -> Candidate:
    """Return the variant that production_quantization chose.

    Raises:
        TunelineError: if `model.gguf` is not the file that `choice.json` names.
    """
    choice = CHOICE.read(ctx)
    path = MODEL.fetch(ctx)
    digest = sha256_file(path)
    if digest != choice.sha256:
        raise TunelineError(
            f"model.gguf has SHA-256 {digest}, but choice.json chose {choice.sha256}; "
            "run production_quantization again"
        )
    return Candidate(ModelFile(path, digest), choice.variant, frozenset(choice.judged_on))


def base_gguf(ctx: StepContext, base: BaseModel | None = None) -> ModelFile:
    """Return the base model as f16 GGUF from the cache, and note it among the inputs."""
    found = cached_gguf(base or base_of(ctx), ctx.log)
    ctx.note_input(found.path.name, found.path.as_uri(), found.path)
    return found


def cached_gguf(base: BaseModel, log: Log) -> ModelFile:
    """Return a base model as f16 GGUF from the cache; export it if it is not there.

    Args:
        base: the model.
        log: a function that takes a line of progress.
    """

    def fill(folder: Path) -> None:
        log(f"exporting the base model {base.uri} to GGUF (once)")
        export_gguf(base.path, folder / "base-f16.gguf")

    key = f"{base.digest} gguf {version('gguf')}"
    folder, files = cached_model(cache_root(), "gguf", key, fill, log=log)
    return ModelFile(folder / "base-f16.gguf", files["base-f16.gguf"])


def scoring_threads() -> int:
    """Return the threads for scoring: all cores of a quiet machine, else those of serving.

    `$TUNELINE_THREADS` decides if it is set.
    """
    quiet = os.getloadavg()[0] < QUIET_LOAD and not os.environ.get("TUNELINE_THREADS")
    return available_cores() if quiet else default_threads()


@contextmanager
def serve(
    model: Path,
    config: PipelineConfig,
    *,
    loras: Sequence[Path] = (),
    threads: int | None = None,
    parallel: int | None = None,
) -> Iterator[LlamaServer]:
    """Run a llama.cpp server with the limits of the deployment.

    Args:
        model: the GGUF file.
        config: the configuration, whose deployment section gives slots and context.
        loras: adapters, off unless a request turns them on.
        threads: number of threads; None takes that of serving.
        parallel: number of slots; None takes the deployment's.
    """
    deployment = config.deployment
    with LlamaServer(
        model,
        loras=loras,
        threads=threads,
        parallel=parallel or deployment.parallel,
        ctx=deployment.context_tokens,
    ) as server:
        yield server


def ask(
    ctx: StepContext, model: Path, prompts: Sequence[Messages], limits: Sequence[int], what: str
) -> list[str]:
    """Ask a model all prompts, greedily, and return its answers in order.

    Args:
        ctx: the step.
        model: the GGUF file.
        prompts: the messages of each request.
        limits: the largest number of tokens of each answer.
        what: the model's name in the progress.
    """
    groups: dict[int, list[int]] = {}
    for number, limit in enumerate(limits):
        groups.setdefault(limit, []).append(number)
    batches = [
        (limit, group[at : at + CHUNK])
        for limit, group in sorted(groups.items())
        for at in range(0, len(group), CHUNK)
    ]
    answers: dict[int, str] = {}
    parallel = ctx.config.deployment.parallel
    with (
        serve(model, ctx.config, threads=scoring_threads()) as server,
        server.client() as client,
    ):
        for limit, numbers in ctx.progress(batches, len(batches), f"{what}, batches of prompts"):
            results = client.complete_batch(
                [prompts[number] for number in numbers], concurrency=parallel, max_tokens=limit
            )
            answers.update(
                (number, result.text) for number, result in zip(numbers, results, strict=True)
            )
    return [answers[number] for number in range(len(prompts))]


def ask_both(
    ctx: StepContext, chosen: Candidate, prompts: Sequence[Messages], limits: Sequence[int]
) -> Answers:
    """Ask the candidate and the base the same prompts; see `ask`.

    The base is not asked again if it has answered the very same prompts before.
    """
    tuned = ask(ctx, chosen.file.path, prompts, limits, "tuned model")
    base, cached = ask_base(ctx, base_gguf(ctx), prompts, limits, "base model")
    return Answers(base, tuned, cached)


def ask_base(
    ctx: StepContext,
    base: ModelFile,
    prompts: Sequence[Messages],
    limits: Sequence[int],
    what: str,
) -> tuple[list[str], bool]:
    """Ask the base model, or take the answers that it gave to the very same prompts before.

    The cache is keyed by everything that decides an answer: the file's hash, the engine's
    version and limits, the prompts and their token limits. See `ask` for the arguments.

    Returns:
        The answers in order, and True if they came from the cache.
    """
    deployment = ctx.config.deployment
    engine = f"xllamacpp {version('xllamacpp')}"
    asked = [base.sha256, engine, deployment.parallel, deployment.context_tokens]
    asked += [[list(map(dict, messages)) for messages in prompts], list(limits)]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = cache_root() / "answers" / f"{key}.json"
    if path.is_file():
        try:
            return list(json.loads(path.read_text())), True
        except ValueError:
            ctx.log(f"{path} is damaged; the base model is asked again")
    answers = ask(ctx, base.path, prompts, limits, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(answers, ensure_ascii=False))
    staged.replace(path)
    return answers, False
