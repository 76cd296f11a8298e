"""vLLM: serves Hugging Face checkpoints, so nothing is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from tuneline.artifacts.deployment import REFERENCE
from tuneline.models.cache import Log
from tuneline.serving.engines.base import Compatibility, Engine, ModelFacts
from tuneline.serving.engines.divergence import Divergence
from tuneline.serving.engines.engine_server import ServeRequest
from tuneline.serving.engines.identity import query_gpus
from tuneline.serving.engines.vllm.distributions import distances, losses
from tuneline.serving.engines.vllm.launch import NOT_INSTALLED
from tuneline.serving.engines.vllm.quantize import quantise
from tuneline.serving.engines.vllm.server import (
    VllmServer,
    is_cpu_build,
    launch_command,
    serve_options,
)


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
        return distances(reference, others, sequences, starts, request)

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
        return launch_command(request, serve_options(request))
