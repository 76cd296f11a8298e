"""vLLM: serves Hugging Face checkpoints, so nothing is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuneline.serving.engines.base import (
    BuildRequest,
    CheckpointServer,
    Compatibility,
    ModelFacts,
)


class Vllm(CheckpointServer):
    """vLLM's OpenAI-compatible server."""

    title = "vLLM"
    package = "vllm"
    program = ("vllm", "serve")
    quantised = "a checkpoint in compressed-tensors form, as llm-compressor writes it"

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up, and refuse GGUF checkpoints."""
        found = super().check(model)
        if model.quantization == "gguf":
            # Out of vLLM's core since its pull request 39612; its parser still takes the word.
            return replace(found, compatible=False, reason="vLLM's core no longer loads GGUF")
        return found

    def options(self, request: BuildRequest) -> dict[str, Any]:
        """Return the options of `vllm serve`."""
        return {
            "--max-model-len": request.max_total_tokens,
            "--max-num-seqs": request.max_batch_size,
            "--tensor-parallel-size": request.tensor_parallel,
        }
