"""A running engine, whichever it is: a process that serves one model over HTTP."""

from __future__ import annotations

import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx

from tuneline.artifacts.deployment import EngineIdentity
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import available_cores, configured_threads
from tuneline.models.chat_templates import request_defaults
from tuneline.serving.client import EngineClient, Messages
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.processes import DetachedProcess, ServerProcess, last_line
from tuneline.serving.protocol import adapter_fields

# A small model is up in a second; large ones read tens of gigabytes from disk first.
START_SECONDS = 600.0
# Within which a started server must generate its first token, seconds.
TOKEN_SECONDS = 30.0
# Of a release that states no limits of its engine.
DEFAULT_PARALLEL, DEFAULT_CONTEXT = 2, 2048

# What an engine says of a start that failed, the error that it means, and what to do.
CAUSES: tuple[tuple[str, type[TunelineError], str], ...] = (
    (r"\.gguf does not exist", UserError, "name a GGUF file that is there"),
    (
        r"max_model_len .* is greater than the derived",
        UserError,
        "lower deployment.context_tokens to what the model was made for",
    ),
    (
        r"does not recognize this architecture|are not supported for now",
        UserError,
        "choose another base model or engine",
    ),
    (
        r"Unsupported CPU attention configuration|head size .* is not supported",
        UserError,
        "vLLM serves heads of this size on a GPU only; choose another base model or llama_cpp",
    ),
    (
        r"LoRA rank .* is greater than|does not yet support DoRA|modules_to_save",
        UserError,
        "train an adapter that vLLM loads (docs/training.md), or ship the merged model",
    ),
    (
        r"ended by SIGILL",
        UserError,
        "its kernels use instructions that this machine lacks (those for four-bit weights need AMX "
        "where the CPU names it); set deployment.variants: [f16], or serve on another machine",
    ),
    (
        r"'_OpNamespace' '\w+' object has no attribute",
        UserError,
        "this build of vLLM lacks that kernel for the CPU of this machine (those for four-bit "
        "weights need AVX-512); set deployment.variants: [f16], or serve on another machine",
    ),
    (
        r"vllm is not installed in this image",
        UserError,
        "choose the image of vLLM (docker/vllm.Dockerfile), or run `make setup-vllm`",
    ),
    (r"incompatible device, expecting compute.*", UserError, "build the engine again on this GPU"),
    (r"version tag does not match.*", UserError, "build the engine again in this image"),
    (
        r"max_\w+ \[\d+\] is greater than build_config\.[^\[]*\[\d+\]",
        UserError,
        "build the engine for more",
    ),
    (r"No GPU devices found.*", UserError, "give the pod a GPU"),
    (
        r"(?i)couldn't bind.*|Failed to bind socket.*|address already in use",
        RetryableError,
        "wait until the port is free",
    ),
    (
        # Memory that may be free later: another process holds it now.
        r"Available memory on node|Free memory on device",
        RetryableError,
        "free it or wait until it is free",
    ),
    (
        r"(?i)ended by SIGKILL|^.*out of memory.*|OutOfMemory|No available memory"
        r"|can't allocate memory",
        TunelineError,
        "lower deployment.parallel or deployment.context_tokens, give the pod more memory, or take "
        "a larger GPU",
    ),
)


@dataclass(frozen=True)
class ServeRequest:
    """The model that a server loads, and the sizes that it is started with.

    Attributes:
        model: what the engine loads: a GGUF file, a checkpoint's folder or an engine's folder.
        alias: the model's name in the API.
        context_tokens: context of one request, in tokens.
        adapters: adapters served next to the model, in the engine's form, by name.
        answers_with: the adapter that clients of the server are answered with; None for the
            model alone, unless a request names an adapter.
        threads: CPU threads; None takes those of serving.
        port: 0 takes a free one.
        start_seconds: longest time until the first token, in seconds.
    """

    model: Path
    alias: str
    parallel: int
    context_tokens: int
    adapters: Mapping[str, Path] = field(default_factory=dict)
    answers_with: str | None = None
    threads: int | None = None
    port: int = 0
    host: str = "127.0.0.1"
    start_seconds: float = START_SECONDS

    @property
    def answering_adapter(self) -> Path | None:
        """The file or folder of the adapter that answers; None for the model alone."""
        return None if self.answers_with is None else self.adapters[self.answers_with]


@dataclass(frozen=True)
class Counters:
    """The totals of an engine since its start, from its metrics.

    Attributes:
        prompt_tokens: prompt tokens that were computed, without those from the prefix cache.
        completion_tokens: tokens that were generated.
        steps: decoding steps; 0 if the engine does not count them.
        step_requests: requests in a decoding step, summed over the steps.
        open_requests: requests that run or wait now; 0 if the engine does not say.
    """

    prompt_tokens: int
    completion_tokens: int
    steps: float = 0.0
    step_requests: float = 0.0
    open_requests: int = 0

    def batch_since(self, earlier: Counters) -> float:
        """Return the mean number of requests in a decoding step since an earlier reading."""
        steps = self.steps - earlier.steps
        return (self.step_requests - earlier.step_requests) / steps if steps else 0.0


class EngineServer(ServerProcess, ABC):
    """The server of an engine as a child process; ready once it has generated a token.

    Attributes:
        title: the engine's name in sentences.
        tool_fields: more fields of requests that declare tools.
        base_url: `http://host:port`; empty before it listens.
    """

    title: ClassVar[str]
    tool_fields: ClassVar[Mapping[str, Any]] = {}
    base_url: str = ""

    def __init__(self, request: ServeRequest, command: Sequence[str], **environment: str) -> None:
        """Describe a server, whose command ends when its standard input closes."""
        self.request = request
        super().__init__(
            command,
            start_seconds=request.start_seconds,
            environment=child_environment(PYTHONUNBUFFERED="1", **environment),
            # The pipe ties its life to ours: it ends when the pipe closes, however we die.
            stdin=subprocess.PIPE,
        )

    @property
    def alias(self) -> str:
        """The model's name in the API."""
        return self.request.alias

    @property
    def url(self) -> str:
        """`http://host:port`, also before it listens if the port was given."""
        return self.base_url or f"http://{self.request.host}:{self.request.port}"

    @property
    def adapter(self) -> int | str | None:
        """Key of the adapter that answers, for `adapter_fields`; None without an adapter."""
        name = self.request.answers_with
        return None if name is None else self.adapter_key(name)

    def client(self, *, timeout: float = 300.0, base: bool = False) -> EngineClient:
        """Return a client of this server, which listens; several may be used at once.

        Args:
            base: True asks the model without the adapter that answers.
        """
        self.base_url = self.base_url or self.find_url() or ""
        name = None if base else self.request.answers_with
        return EngineClient(
            self.url,
            model=self.alias,
            timeout=timeout,
            fields={} if name is None else self.with_adapter(name),
            chat_fields=request_defaults(self.request.model),
            tool_fields=self.tool_fields,
        )

    def upstream(self, name: str, **settings: Any) -> dict[str, Any]:
        """Return the entry of this server among the upstreams of a gateway."""
        entry: dict[str, Any] = {"name": name, "base_url": f"{self.url}/v1", "model": self.alias}
        if self.adapter is not None:
            entry["adapter"] = self.adapter
        return {**entry, **settings}

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's processes, in bytes."""
        return DetachedProcess(self.pid).memory_bytes()

    def find_url(self) -> str | None:
        """Return the address once the server listens and has loaded the weights, None before."""
        return self.url if engine_probe.listens(self.url, 2.0) else None

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return the error that its log states, or a retryable one if its time ran out."""
        if code is None:
            return RetryableError(
                f"{self.title} with {self.request.model} was not ready after "
                f"{self.start_seconds:.0f} s: {lacking}"
            )
        log = self.read_log()
        words = self.cause(log) or last_line(log)
        return end_error(self.title, self.request.model, code, words)

    @abstractmethod
    def cause(self, log: str) -> str | None:
        """Return the words of its log that say why it ended; None without any."""

    def waiting_for(self) -> str | None:
        """Return None once it listens and has generated a token."""
        url = self.base_url or self.find_url()
        if url is None:
            return "it did not listen"
        self.base_url = url
        found = engine_probe.ready(url, TOKEN_SECONDS, self.alias, self.adapter)
        return None if found.ok else found.reason

    @abstractmethod
    def counters(self) -> Counters:
        """Read the engine's counters."""

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Return what a route of the server answers, from JSON."""
        answer = httpx.post(f"{self.url}/{route}", json=body, timeout=60.0, trust_env=False)
        answer.raise_for_status()
        return answer.json()

    def metrics(self) -> dict[str, float]:
        """Read the engine's Prometheus metrics, by name."""
        with self.client() as client:
            return client.metrics()

    def with_adapter(self, name: str) -> dict[str, Any]:
        """Return the fields of a request that is answered with an adapter."""
        return adapter_fields(self.adapter_key(name))

    def adapter_key(self, name: str) -> int | str:
        """Return what gateway and probe call an adapter: its name, or its place."""
        return name

    @abstractmethod
    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Return True if the engine turns messages into the text and the ids of training."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the engine's token ids of texts; special tokens are recognised."""


@dataclass(frozen=True)
class ServedSizes:
    """The sizes that an engine's server is started with; None leaves threads to the machine."""

    parallel: int
    context_tokens: int
    threads: int | None = None

    @classmethod
    def of(cls, request: ServeRequest) -> ServedSizes:
        """Return the sizes that a server was started with."""
        return cls(request.parallel, request.context_tokens, request.threads)

    def as_stated(self) -> dict[str, int | None]:
        """Return the sizes as an engine's identity states them."""
        return {
            "max_batch_size": self.parallel,
            "max_total_tokens": self.context_tokens,
            "threads": self.threads,
        }


def served_sizes(identity: EngineIdentity) -> ServedSizes:
    """Return the sizes that a release of an engine is served with.

    What its server was started with counts; a built engine may take more than that.
    """
    stated = identity.served or identity.limits
    return ServedSizes(
        int(stated.get("max_batch_size") or DEFAULT_PARALLEL),
        int(stated.get("max_total_tokens") or DEFAULT_CONTEXT),
        int(stated["threads"]) if stated.get("threads") else None,
    )


def largest(sizes: Iterable[ServedSizes]) -> ServedSizes:
    """Return sizes that are enough for several releases on one engine."""
    parallel, context_tokens, threads = zip(*map(astuple, sizes), strict=True)
    return ServedSizes(max(parallel), max(context_tokens), max(filter(None, threads), default=None))


def threads_here(measured: int | None) -> int | None:
    """Return the threads of a server on this machine, whose release was measured with some.

    Those are `$TUNELINE_THREADS`, or the measured ones, but no more than there are cores.
    """
    configured = configured_threads()
    if configured is not None or measured is None:
        return configured
    return min(measured, available_cores())


def known_cause(text: str) -> tuple[str, type[TunelineError], str] | None:
    """Return the words of the first of `CAUSES` in a text, its error and its remedy, or None."""
    for pattern, kind, remedy in CAUSES:
        if found := re.search(pattern, text, re.M):
            return found.group(0).strip().rstrip("."), kind, remedy
    return None


def end_error(title: str, model: Path, code: int, words: str) -> TunelineError:
    """Return the error of an engine that ended by itself, with a remedy if its words are known."""
    said = f"{title} can't serve {model}: {words}"
    if known := known_cause(words):
        _, kind, remedy = known
        return kind(f"{said}; {remedy}")
    return TunelineError(f"{said} (exit code {code})")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as command-line arguments, those with the value None left out."""
    given = {flag: str(value) for flag, value in options.items() if value is not None}
    return [part for option in given.items() for part in option]
