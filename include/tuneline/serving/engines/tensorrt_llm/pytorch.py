"""TensorRT-LLM's PyTorch backend, the only one from 1.3 on: it loads checkpoints directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tuneline.artifacts.deployment import REFERENCE
from tuneline.errors import UserError
from tuneline.models.cache import Log
from tuneline.serving.engines.divergence import Divergence
from tuneline.serving.engines.engine_server import ServeRequest
from tuneline.serving.engines.tensorrt_llm.commands import lacking
from tuneline.serving.engines.tensorrt_llm.of_nvidias_image import OfNvidiasImage
from tuneline.serving.engines.tensorrt_llm.server import TrtllmServer, launch_command


class TensorRtLlmPytorch(OfNvidiasImage):
    """`trtllm-serve` on a Hugging Face directory."""

    title: ClassVar[str] = "TensorRT-LLM (PyTorch backend)"

    def missing(self) -> str | None:
        """Return what keeps the engine from being started here, None if nothing does."""
        return lacking("trtllm-serve")

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Return the checkpoint itself: it ships as it was exported."""
        if name != REFERENCE:
            raise UserError(f"{self.name} has no variant {name}; use {REFERENCE}")
        return source

    def distances(
        self,
        reference: Path,
        others: Mapping[str, Path],
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        request: ServeRequest,
    ) -> dict[str, Divergence]:
        """Return the perplexity of the one variant that there is.

        transformers computes it in float32 of the same checkpoint: trtllm-serve gives no
        probabilities of a prompt. There is no distance to measure.
        """
        from tuneline.serving.engines.tensorrt_llm.checkpoint_logits import perplexity

        foreign = [name for name, path in others.items() if path != reference]
        if foreign:
            raise UserError(f"{self.name} has no variant {', '.join(foreign)}; use {REFERENCE}")
        found = perplexity(reference, sequences, starts)
        return dict.fromkeys(others, found)

    def server(self, request: ServeRequest) -> TrtllmServer:
        """Return a server of a checkpoint."""
        return TrtllmServer(request, "pytorch")

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server."""
        return launch_command(request, "pytorch")
