"""SGLang: serves Hugging Face checkpoints as they are, so nothing is built."""

from __future__ import annotations

from tuneline.errors import UserError
from tuneline.serving.engines.base import (
    BuildReport,
    BuildRequest,
    Compatibility,
    Engine,
    ModelFacts,
    ServeRequest,
    render,
)
from tuneline.serving.engines.identity import hash_tree, machine_identity
from tuneline.serving.engines.registry import check_architecture


class SgLang(Engine):
    """SGLang's OpenAI-compatible server."""

    name = "sglang"

    def check(self, model: ModelFacts) -> Compatibility:
        """Ask SGLang's registry, or the table."""
        return check_architecture(self.name, model)

    def build(self, request: BuildRequest) -> BuildReport:
        """Nothing to build: the checkpoint itself is identified."""
        if request.quantization is not None:
            raise UserError(
                f"SGLang does not quantise ({request.quantization}); give it a quantised checkpoint"
            )
        identity = {
            "engine": self.name,
            **machine_identity(),
            "files": hash_tree(request.model_dir),
        }
        return BuildReport(self.name, True, "it serves the checkpoint itself", (), identity)

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
