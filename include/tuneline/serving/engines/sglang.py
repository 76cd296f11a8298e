"""SGLang: serves Hugging Face checkpoints as they are, so nothing is built."""

from __future__ import annotations

from tuneline.serving.engines.base import ServeRequest, render
from tuneline.serving.engines.checkpoint_server import CheckpointServer


class SgLang(CheckpointServer):
    """SGLang's OpenAI-compatible server."""

    name = "sglang"
    title = "SGLang"

    def command(self, request: ServeRequest) -> list[str]:
        """`python -m sglang.launch_server …`."""
        command = ["python", "-m", "sglang.launch_server"]
        command += render(
            [
                ("--model-path", request.model),
                ("--tokenizer-path", request.tokenizer),
                ("--host", request.host),
                ("--port", request.port),
                ("--served-model-name", request.alias),
                ("--context-length", request.max_total_tokens),
                ("--max-running-requests", request.max_batch_size),
                ("--tp", request.tensor_parallel),
            ]
        )
        if request.adapters:
            command += ["--enable-lora"]
            command += render([("--max-lora-rank", request.lora_rank)])
            command += ["--max-loras-per-batch", str(len(request.adapters)), "--lora-paths"]
            command += [f"{name}={path}" for name, path in request.adapters.items()]
        return command
