"""TensorRT-LLM's PyTorch backend, the only one from 1.3 on: it loads checkpoints directly."""

from __future__ import annotations

import shutil
from typing import Any

from tuneline.artifacts.deployment import BuildReport
from tuneline.serving.engines.base import BuildRequest, CheckpointServer
from tuneline.serving.engines.identity import query_gpus


class TensorRtLlmPytorch(CheckpointServer):
    """`trtllm-serve` on a Hugging Face directory."""

    title = "tensorrt_llm_pytorch"
    package = "tensorrt_llm"
    program = ("trtllm-serve",)
    quantised = "a checkpoint that ModelOpt exported (it has an hf_quant_config.json)"

    def build(self, request: BuildRequest) -> BuildReport:
        """Identify the checkpoint if there is a GPU and `trtllm-serve`, else report the obstacle.

        Raises:
            UserError: if a quantisation is requested; the backend takes ModelOpt's checkpoints.
        """
        servable = query_gpus() and shutil.which("trtllm-serve") is not None
        # A quantisation is refused on every machine alike.
        if servable or request.quantization is not None:
            return super().build(request)
        return BuildReport(
            engine=self.name,
            built=False,
            reason="not built: needs a GPU pod with tensorrt-llm 1.3 or later",
            commands=[self.serve_command(request)],
        )

    def options(self, request: BuildRequest) -> dict[str, Any]:
        """Return the options of `trtllm-serve`."""
        return {
            "--backend": "pytorch",
            "--max_batch_size": request.max_batch_size,
            "--max_seq_len": request.max_total_tokens,
            "--tp_size": request.tensor_parallel,
        }
