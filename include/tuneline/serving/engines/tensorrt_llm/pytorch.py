"""TensorRT-LLM's PyTorch backend, the only one from 1.3 on: it loads checkpoints directly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from tuneline.errors import UserError
from tuneline.serving.engines.base import BuildReport, BuildRequest, ServeRequest
from tuneline.serving.engines.checkpoint_server import CheckpointServer
from tuneline.serving.engines.identity import query_gpus
from tuneline.serving.engines.tensorrt_llm.engine import serve_command


class TensorRtLlmPytorch(CheckpointServer):
    """`trtllm-serve` on a Hugging Face directory."""

    name = "tensorrt_llm_pytorch"
    title = name
    wanted = "a checkpoint that ModelOpt exported (it has an hf_quant_config.json)"

    def build(self, request: BuildRequest) -> BuildReport:
        """Identify the checkpoint; on a machine without the GPU nothing is said to be built.

        Raises:
            UserError: A quantisation is asked for; the backend takes ModelOpt's checkpoints.
        """
        serve = ServeRequest(
            request.model_dir,
            alias=request.model_dir.name,
            max_batch_size=request.max_batch_size,
            max_total_tokens=request.max_total_tokens,
            tensor_parallel=request.tensor_parallel,
        )
        commands = (tuple(self.command(serve)),)
        servable = bool(query_gpus()) and shutil.which("trtllm-serve") is not None
        # A quantisation is refused on every machine alike.
        if servable or request.quantization is not None:
            return replace(super().build(request), commands=commands)
        reason = "not built: needs a GPU pod with tensorrt-llm 1.3 or later"
        return BuildReport(self.name, False, reason, commands)

    def details(self, request: BuildRequest) -> dict[str, Any]:
        """The sizes that its server is started with."""
        limits = {
            "max_batch_size": request.max_batch_size,
            "max_seq_len": request.max_total_tokens,
        }
        return {"limits": limits}

    def command(self, request: ServeRequest) -> list[str]:
        """`trtllm-serve …` with the PyTorch backend.

        Raises:
            UserError: Adapters are asked for; here they are served merged.
        """
        if request.adapters:
            raise UserError("tensorrt_llm_pytorch: adapters are not set up here; merge them")
        return serve_command(request, backend="pytorch")
