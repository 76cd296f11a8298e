"""TensorRT-LLM's engine path, as in 1.2.1: convert a checkpoint, then `trtllm-build`.

1.2 is the last line with this path: from 1.3 on there is the PyTorch backend only
(`tensorrt_llm_pytorch`). An engine is built on a GPU of the kind that will serve it; without
one, `build` returns the exact commands and reports that nothing was built. A test parses the
command lines with the flags of the release.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneline.artifacts.deployment import BuildReport
from tuneline.errors import TunelineError, UserError
from tuneline.models.base_model import read_json
from tuneline.serving.engines.base import (
    BuildRequest,
    Compatibility,
    Engine,
    ModelFacts,
    arguments,
    read_facts,
)
from tuneline.serving.engines.identity import hash_tree, machine_identity, query_gpus

VERSION = "1.2.1"

# Folder of the conversion scripts in NVIDIA's release image.
EXAMPLES = Path("/app/tensorrt_llm/examples")

# Quantisations of quantize.py, with the least compute capability.
QUANTISATIONS = {"int4_awq": 8.0, "int8_sq": 8.0, "fp8": 8.9, "nvfp4": 10.0}

# Folder of convert_checkpoint.py for an architecture; the others are not tested here.
_CONVERTERS = {
    "LlamaForCausalLM": "models/core/llama",
    "MistralForCausalLM": "models/core/llama",
    "Qwen2ForCausalLM": "models/core/qwen",
    "Qwen3ForCausalLM": "models/core/qwen",
}


class TensorRtLlm(Engine):
    """TensorRT-LLM 1.2.1 with built engines."""

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up in MODEL_MAP (or the table) and among the converters."""
        found = super().check(model)
        if found.compatible and model.architecture not in _CONVERTERS:
            reason = f"{model.architecture} is known, but its conversion is not set up here"
            return replace(found, compatible=False, reason=reason)
        if model.quantization is not None:
            reason = f"the engine path converts unquantised checkpoints, not {model.quantization}"
            return replace(found, compatible=False, reason=reason)
        return found

    def commands(self, request: BuildRequest) -> list[list[str]]:
        """Return the command lines of conversion and build in the release image.

        Raises:
            UserError: if the architecture or the quantisation is unknown.
        """
        architecture = read_facts(request.model_dir).architecture
        if architecture not in _CONVERTERS:
            raise UserError(
                f"tensorrt_llm: no conversion is known for {architecture}, only for "
                f"{', '.join(_CONVERTERS)}; use the engine tensorrt_llm_pytorch"
            )
        checkpoint = request.out_dir / "checkpoint"
        return [
            _conversion(request, _CONVERTERS[architecture], checkpoint),
            _engine_build(request, checkpoint),
        ]

    def build(self, request: BuildRequest) -> BuildReport:
        """Convert and build, where there is a GPU and TensorRT-LLM.

        Raises:
            UserError: if no machine could meet the request.
            TunelineError: if a command failed, with its last line.
        """
        commands = self.commands(request)
        if obstacle := _obstacle(request):
            reason = f"not built: {obstacle}"
            return BuildReport(engine=self.name, built=False, reason=reason, commands=commands)
        started = time.monotonic()
        for command in commands:
            _run(command)
        return BuildReport(
            engine=self.name,
            built=True,
            reason="built and identified",
            commands=commands,
            identity=self.identity(request.out_dir / "engine"),
            seconds=time.monotonic() - started,
        )

    def identity(self, engine_dir: Path) -> dict[str, Any]:
        """Return everything that an engine directory is tied to.

        Its own config.json names version, limits and quantisation, but neither GPU, driver nor
        compute capability, on which loading it elsewhere fails; those are added here.
        """
        config = read_json(engine_dir / "config.json")
        build, pretrained = config.get("build_config", {}), config.get("pretrained_config", {})
        limits = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
        return {
            "engine": self.name,
            "version": f"tensorrt_llm {config.get('version')}",
            "limits": {name: build.get(name) for name in limits},
            **{name: pretrained.get(name) for name in ("dtype", "quantization", "mapping")},
            **machine_identity(),
            "files": hash_tree(engine_dir),
        }


def _conversion(request: BuildRequest, folder: str, checkpoint: Path) -> list[str]:
    options = {
        "--model_dir": request.model_dir,
        "--output_dir": checkpoint,
        "--dtype": request.dtype,
        "--tp_size": request.tensor_parallel,
    }
    method = request.quantization
    if method is None:
        return ["python", str(EXAMPLES / folder / "convert_checkpoint.py"), *arguments(options)]
    if method not in QUANTISATIONS:
        raise UserError(
            f"tensorrt_llm: quantisation {method!r}: use one of {', '.join(QUANTISATIONS)}"
        )
    quantisation = {
        "--qformat": method,
        "--calib_dataset": request.calibration_dir,
        # The default of 128 must divide the hidden size; small models need less.
        "--awq_block_size": _awq_block(request.model_dir) if "awq" in method else None,
    }
    script = str(EXAMPLES / "quantization" / "quantize.py")
    return ["python", script, *arguments({**options, **quantisation})]


def _awq_block(model_dir: Path) -> int:
    hidden = int(read_json(model_dir / "config.json")["hidden_size"])
    for block in (128, 64, 32):
        if hidden % block == 0:
            return block
    raise UserError(f"int4_awq: no block size divides a hidden size of {hidden}; use fp8 or none")


def _engine_build(request: BuildRequest, checkpoint: Path) -> list[str]:
    options = {
        "--checkpoint_dir": checkpoint,
        "--output_dir": request.out_dir / "engine",
        "--max_batch_size": request.max_batch_size,
        "--max_input_len": request.max_input_tokens,
        "--max_seq_len": request.max_total_tokens,
        "--max_num_tokens": max(request.max_input_tokens, 8192),
        "--gemm_plugin": "auto",
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",
        "--use_paged_context_fmha": "enable",
        "--workers": request.tensor_parallel,
        "--lora_plugin": None if request.lora_rank is None else "auto",
        "--max_lora_rank": request.lora_rank,
    }
    return ["trtllm-build", *arguments(options)]


def _run(command: Sequence[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        raise TunelineError(
            f"{Path(command[0]).name} ended with code {answer.returncode}: "
            f"{lines[-1] if lines else 'no message'}"
        )


def _obstacle(request: BuildRequest) -> str | None:
    gpus = query_gpus()
    lacking = [] if gpus else ["no GPU"]
    lacking += [] if shutil.which("trtllm-build") else ["no trtllm-build"]
    if lacking:
        return f"needs a GPU pod with tensorrt-llm {VERSION} ({' and '.join(lacking)} here)"
    if request.quantization is not None:
        least = QUANTISATIONS[request.quantization]
        have = min(float(gpu["compute_cap"]) for gpu in gpus)
        if have < least:
            return f"{request.quantization} needs compute capability {least}, the GPU has {have}"
    return None
