"""TensorRT-LLM's PyTorch backend, the only one from 1.3 on: it loads checkpoints directly."""

from __future__ import annotations

import shutil

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
from tuneline.serving.engines.identity import hash_tree, machine_identity, query_gpus
from tuneline.serving.engines.registry import check_architecture


class TensorRtLlmPytorch(Engine):
    """`trtllm-serve` on a Hugging Face directory."""

    name = "tensorrt_llm_pytorch"

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up in the backend's index."""
        return check_architecture(self.name, model)

    def build(self, request: BuildRequest) -> BuildReport:
        """Identify the checkpoint; on a machine without the GPU nothing is said to be built.

        Raises:
            UserError: A quantisation is asked for; the backend takes ModelOpt's checkpoints.
        """
        if request.quantization is not None:
            raise UserError(
                f"tensorrt_llm_pytorch does not quantise ({request.quantization}); give it a "
                "checkpoint that ModelOpt exported (it has an hf_quant_config.json)"
            )
        serve = ServeRequest(
            request.model_dir,
            alias=request.model_dir.name,
            max_batch_size=request.max_batch_size,
            max_total_tokens=request.max_total_tokens,
            tensor_parallel=request.tensor_parallel,
        )
        commands = (tuple(self.command(serve)),)
        if not query_gpus() or shutil.which("trtllm-serve") is None:
            reason = "not built: needs a GPU pod with tensorrt-llm 1.3 or later"
            return BuildReport(self.name, False, reason, commands)
        identity = {
            "engine": self.name,
            "limits": {
                "max_batch_size": request.max_batch_size,
                "max_seq_len": request.max_total_tokens,
            },
            **machine_identity(),
            "files": hash_tree(request.model_dir),
        }
        return BuildReport(self.name, True, "it serves the checkpoint itself", commands, identity)

    def command(self, request: ServeRequest) -> list[str]:
        """`trtllm-serve …` with the PyTorch backend.

        Raises:
            UserError: Adapters are asked for; here they are served merged.
        """
        if request.adapters:
            raise UserError("tensorrt_llm_pytorch: adapters are not set up here; merge them")
        return [
            "trtllm-serve",
            str(request.model),
            *render(
                [
                    ("--backend", "pytorch"),
                    ("--tokenizer", request.tokenizer),
                    ("--host", request.host),
                    ("--port", request.port),
                    ("--max_batch_size", request.max_batch_size),
                    ("--max_seq_len", request.max_total_tokens),
                    ("--tp_size", request.tensor_parallel),
                ]
            ),
        ]
