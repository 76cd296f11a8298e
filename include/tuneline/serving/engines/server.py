"""A running engine, whichever it is: a process that serves one model over HTTP."""

from __future__ import annotations

import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tuneline.artifacts.deployment import EngineIdentity
from tuneline.errors import RetryableError, TunelineError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import available_cores, configured_threads
from tuneline.serving.client import EngineClient, Messages
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.processes import DetachedProcess, ServerProcess
from tuneline.serving.protocol import adapter_fields

# A small model is up in a second; large ones read tens of gigabytes from disk first.
START_SECONDS = 600.0
# Within which a started server must generate its first token, seconds.
TOKEN_SECONDS = 30.0
# Of a release that states no limits of its engine.
DEFAULT_PARALLEL, DEFAULT_CONTEXT = 2, 2048


# A pattern of an engine's words, the error that they mean, and what to do.
Cause = tuple[str, type[TunelineError], str]


@dataclass(frozen=True)
class ServeRequest:
    """The model that a server loads, and the sizes that it is started with.

    Attributes:
        model: what the engine loads: a GGUF file, a checkpoint's folder or an engine's folder.
        alias: the model's name in the API.
        context_tokens: context of one request, in tokens.
        adapters: adapters served beside the model, in the engine's form, by name.
        answers_with: the adapter that clients of the server are answered with; None for the
            model alone, unless a request names an adapter.
        threads: CPU threads; None takes those of serving.
        port: port to listen on; 0 takes a free one.
        host: address to listen on.
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
    """

    prompt_tokens: int
    completion_tokens: int
    steps: float = 0.0
    step_requests: float = 0.0

    def batch_since(self, earlier: Counters) -> float:
        """Return the mean number of requests in a decoding step since an earlier reading."""
        steps = self.steps - earlier.steps
        return (self.step_requests - earlier.step_requests) / steps if steps else 0.0


class EngineServer(ServerProcess, ABC):
    """The server of an engine as a child process; ready once it has generated a token.

    Attributes:
        title: the engine's name in sentences.
        request: the model and the sizes that it was started with.
        base_url: `http://host:port`; empty before it listens.
    """

    title: ClassVar[str]
    base_url: str = ""

    def __init__(self, request: ServeRequest, command: Sequence[str], **environment: str) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            command: the command line; it ends when its standard input closes.
        """
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

    def client(self, *, timeout: float = 300.0) -> EngineClient:
        """Return a client of this server, which listens; several may be used at once."""
        self.base_url = self.base_url or self.find_url() or ""
        name = self.request.answers_with
        fields = {} if name is None else self.with_adapter(name)
        return EngineClient(self.url, model=self.alias, timeout=timeout, fields=fields)

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
        return self.end_error(code, self.read_log())

    @abstractmethod
    def end_error(self, code: int, log: str) -> TunelineError:
        """Return the error of a server that ended before it was ready."""

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
        """Return True if the engine turns messages into the prompt that training used.

        Args:
            ids: its token ids.
        """

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the engine's token ids of texts; special tokens are recognised."""


@dataclass(frozen=True)
class ServedSizes:
    """The sizes that an engine's server is started with.

    Attributes:
        context_tokens: context of one request, in tokens.
        threads: CPU threads; None leaves them to the machine.
    """

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
    each = list(sizes)
    threads = [one.threads for one in each if one.threads is not None]
    return ServedSizes(
        max(one.parallel for one in each),
        max(one.context_tokens for one in each),
        max(threads, default=None),
    )


def threads_here(measured: int | None) -> int | None:
    """Return the threads of a server on this machine.

    Args:
        measured: the threads that a release was measured with.

    Returns:
        `$TUNELINE_THREADS`, or the measured threads, but no more than there are cores; None if
        neither is known.
    """
    configured = configured_threads()
    if configured is not None or measured is None:
        return configured
    return min(measured, available_cores())


def known_cause(text: str, causes: Sequence[Cause]) -> tuple[str, type[TunelineError], str] | None:
    """Return the words of the first known cause in a text, its error and its remedy, or None."""
    for pattern, kind, remedy in causes:
        if found := re.search(pattern, text, re.M):
            return found.group(0).strip().rstrip("."), kind, remedy
    return None


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as command-line arguments, those with the value None left out."""
    given = {flag: str(value) for flag, value in options.items() if value is not None}
    return [part for option in given.items() for part in option]
