"""vLLM: serves Hugging Face checkpoints as they are, so nothing is built."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tuneline.errors import UserError
from tuneline.serving.engines.base import (
    BuildRequest,
    Compatibility,
    ModelFacts,
    ServeRequest,
    render,
)
from tuneline.serving.engines.checkpoint_server import CheckpointServer

# Values that `--max-lora-rank` takes (vllm/config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def allowed_lora_rank(rank: int) -> int:
    """The smallest value of `--max-lora-rank` that holds a rank.

    Raises:
        UserError: The rank is above all of them.
    """
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise UserError(f"vLLM takes LoRA ranks up to {LORA_RANKS[-1]}, not {rank}; merge the adapter")


class Vllm(CheckpointServer):
    """vLLM's OpenAI-compatible server."""

    name = "vllm"
    title = "vLLM"
    wanted = "a checkpoint in compressed-tensors form, as llm-compressor writes it"

    def check(self, model: ModelFacts) -> Compatibility:
        """Ask vLLM's registry (or the table), and what it can't load besides."""
        found = super().check(model)
        if model.quantization == "gguf":
            # Out of vLLM's core since its pull request 39612; its parser still takes the word.
            return replace(found, compatible=False, reason="vLLM's core no longer loads GGUF")
        if model.lora_rank is not None and model.lora_rank > LORA_RANKS[-1]:
            reason = f"a LoRA of rank {model.lora_rank} is above the {LORA_RANKS[-1]} it takes"
            return replace(found, compatible=False, reason=reason)
        return found

    def details(self, request: BuildRequest) -> dict[str, Any]:
        """The installed release, which decides what it can load."""
        return {"version": _installed()}

    def command(self, request: ServeRequest) -> list[str]:
        """`vllm serve …`."""
        command = ["vllm", "serve", str(request.model)]
        command += render(
            [
                ("--host", request.host),
                ("--port", request.port),
                ("--served-model-name", request.alias),
                ("--max-model-len", request.max_total_tokens),
                ("--max-num-seqs", request.max_batch_size),
                ("--tensor-parallel-size", request.tensor_parallel),
                ("--tokenizer", request.tokenizer),
            ]
        )
        if request.adapters:
            rank = allowed_lora_rank(request.lora_rank or LORA_RANKS[1])
            command += ["--enable-lora", "--max-lora-rank", str(rank)]
            command += ["--max-loras", str(len(request.adapters)), "--lora-modules"]
            command += [f"{name}={path}" for name, path in request.adapters.items()]
        return command


def _installed() -> str:
    try:
        return f"vllm {version('vllm')}"
    except PackageNotFoundError:
        return "vllm not installed here"
