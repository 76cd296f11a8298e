"""Text Generation Inference: in maintenance mode, supported as what others may still run."""

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


class Tgi(Engine):
    """TGI's launcher; it speaks the OpenAI chat protocol."""

    name = "tgi"

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up in the table; TGI can't be imported outside its image."""
        return check_architecture(self.name, model)

    def build(self, request: BuildRequest) -> BuildReport:
        """Nothing to build: the checkpoint itself is identified."""
        if request.quantization is not None:
            raise UserError(
                f"TGI does not quantise ({request.quantization}); give it a quantised checkpoint"
            )
        identity = {
            "engine": self.name,
            **machine_identity(),
            "files": hash_tree(request.model_dir),
        }
        return BuildReport(self.name, True, "it serves the checkpoint itself", (), identity)

    def command(self, request: ServeRequest) -> list[str]:
        """`text-generation-launcher …`; adapters go through its environment variable.

        Raises:
            UserError: Adapters are asked for.
        """
        if request.adapters:
            raise UserError("TGI takes adapters by LORA_ADAPTERS in its environment; merge them")
        return [
            "text-generation-launcher",
            *render(
                [
                    ("--model-id", request.model),
                    ("--hostname", request.host),
                    ("--port", request.port),
                    ("--max-total-tokens", request.max_total_tokens),
                    ("--max-concurrent-requests", request.max_batch_size),
                    ("--num-shard", request.tensor_parallel),
                ]
            ),
        ]
