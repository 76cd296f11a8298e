"""Text Generation Inference: in maintenance mode, supported as what others may still run."""

from __future__ import annotations

from tuneline.errors import UserError
from tuneline.serving.engines.base import ServeRequest, render
from tuneline.serving.engines.checkpoint_server import CheckpointServer


class Tgi(CheckpointServer):
    """TGI's launcher; it speaks the OpenAI chat protocol.

    It can't be imported outside its image, so `check` always looks in the table.
    """

    name = "tgi"
    title = "TGI"

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
