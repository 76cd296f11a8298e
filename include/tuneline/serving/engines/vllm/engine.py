"""vLLM: serves Hugging Face checkpoints, so nothing is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import httpx

from tuneline.artifacts.deployment import REFERENCE
from tuneline.errors import TunelineError
from tuneline.machine.cores import default_threads
from tuneline.models.cache import Log
from tuneline.serving.client import Messages
from tuneline.serving.engines.divergence import Divergence, rows_of
from tuneline.serving.engines.engine import Compatibility, Engine, ModelFacts, query_gpus
from tuneline.serving.engines.server import Counters, EngineServer, ServeRequest
from tuneline.serving.engines.vllm.launch import (
    DRAIN_SECONDS,
    NOT_INSTALLED,
    is_cpu_build,
    launch_command,
    start_error,
)
from tuneline.serving.engines.vllm.quantize import quantise
from tuneline.serving.engines.vllm.scoring import distances, losses
from tuneline.serving.processes import free_port

_PROMPT, _CACHED = "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total"
_COMPLETION, _STEPS = "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"


class Vllm(Engine):
    """vLLM's OpenAI-compatible server, on GPUs or on the CPU, whichever it was built for."""

    title: ClassVar[str] = "vLLM"

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up, and refuse GGUF checkpoints."""
        found = super().check(model)
        if model.quantization == "gguf":
            # Out of vLLM's core since its pull request 39612; its parser still takes the word.
            return replace(found, compatible=False, reason="vLLM's core no longer loads GGUF")
        return found

    def missing(self) -> str | None:
        """Return what is missing to start it here, None if nothing is."""
        if find_spec("vllm") is None:
            return NOT_INSTALLED
        if not is_cpu_build() and not query_gpus():
            return f"{self.version()} is built for GPUs, and there is none here"
        return None

    def version(self) -> str:
        """Return the version of vLLM."""
        try:
            return f"vllm {version('vllm')}"
        except PackageNotFoundError:
            return "vllm not installed here"

    def on_gpu(self) -> bool:
        """Return True if the installed vLLM is not built for the CPU."""
        return find_spec("vllm") is not None and not is_cpu_build()

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Quantise a checkpoint; `f16` is the merged checkpoint itself."""
        if name == REFERENCE:
            return source
        log(f"quantising to {name} with llm-compressor, calibrated on {len(texts)} rows")
        return quantise(source, target, texts)

    def distances(
        self,
        reference: Path,
        others: Mapping[str, Path],
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        request: ServeRequest,
    ) -> dict[str, Divergence]:
        """Compare log-probabilities over the whole vocabulary, as vLLM serves each checkpoint."""
        return distances(reference, others, rows_of(sequences, starts), request)

    def losses(
        self,
        model: Path,
        sequences: Sequence[Sequence[int]],
        scored: Sequence[Sequence[bool]],
        request: ServeRequest,
    ) -> list[float] | None:
        """Score the tokens of a checkpoint as vLLM serves it, in a child process."""
        return losses(model, sequences, scored, request)

    def server(self, request: ServeRequest) -> VllmServer:
        """Return a server of a checkpoint."""
        return VllmServer(request)

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server."""
        return launch_command(request)


class VllmServer(EngineServer):
    """A vLLM server as a child process; ready once it has generated a token.

    with VllmServer(ServeRequest(Path("checkpoint"), "model", 4, 1024)) as server:
        server.client().chat([…], max_tokens=32)
    """

    title = "vLLM"
    # Longer than vLLM itself takes to drain and to end its processes.
    stop_seconds = DRAIN_SECONDS + 10.0
    poll_seconds = 0.2
    # vLLM's engine and its workers are processes of their own.
    own_group = True

    def __init__(self, request: ServeRequest) -> None:
        """Describe a server; the adapters of the request are PEFT folders."""
        # vLLM does not print the port that it would choose.
        threads, port = request.threads or default_threads(), request.port or free_port()
        request = replace(request, threads=threads, port=port)
        super().__init__(request, launch_command(request, "--stop-with-stdin"))

    def counters(self) -> Counters:
        """Read the counters; a request generates one token in each step that it is part of."""
        metrics = self.metrics()
        generated = metrics[_COMPLETION]
        return Counters(
            int(metrics[_PROMPT] - metrics.get(_CACHED, 0.0)),
            int(generated),
            metrics[_STEPS],
            generated,
        )

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare the token ids that the checkpoint's chat template gives."""
        body = {"messages": list(messages), "add_generation_prompt": True}
        return self._tokens(body) == list(ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the checkpoint's tokenizer."""
        return [self._tokens({"prompt": text, "add_special_tokens": False}) for text in texts]

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        answer = httpx.post(
            f"{self.base_url}/tokenize",
            json={"model": self.alias, **body},
            timeout=60.0,
            trust_env=False,
        )
        answer.raise_for_status()
        return [int(token) for token in answer.json()["tokens"]]

    def end_error(self, code: int, log: str) -> TunelineError:
        """Return the error that its log states."""
        return start_error(self.request.model, code, log)
