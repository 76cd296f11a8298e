"""TensorRT-LLM's engine path, as in 1.2.1: convert, `trtllm-build`, serve the engine.

The path ends with that line: from 1.3 on there is the PyTorch backend only
(`tensorrt_llm_pytorch`). It builds on a GPU of the kind that will serve; anywhere else
`build` gives the exact commands and says that nothing was built. The command lines follow
a table of the release's flags, which tests turn into a parser.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tuneline.errors import TunelineError, UserError
from tuneline.models.base_model import read_json
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

VERSION = "1.2.1"
_FLAGS = Path(__file__).with_name("flags.json")

# Where NVIDIA's release image keeps the conversion scripts.
EXAMPLES = Path("/app/tensorrt_llm/examples")

# Our names of quantisations → quantize.py's, with the least compute capability.
QUANTISATIONS = {
    "int4_awq": ("int4_awq", 8.0),
    "int8_sq": ("int8_sq", 8.0),
    "fp8": ("fp8", 8.9),
    "nvfp4": ("nvfp4", 10.0),
}

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}

# Folder of convert_checkpoint.py for an architecture; the others' are not tried here.
_CONVERTERS = {
    "LlamaForCausalLM": "models/core/llama",
    "MistralForCausalLM": "models/core/llama",
    "Qwen2ForCausalLM": "models/core/qwen",
    "Qwen3ForCausalLM": "models/core/qwen",
}


class TensorRtLlm(Engine):
    """TensorRT-LLM 1.2.1 with built engines."""

    name = "tensorrt_llm"

    def check(self, model: ModelFacts) -> Compatibility:
        """Ask MODEL_MAP (or the table), and whether a converter is known here."""
        found = check_architecture(self.name, model)
        if found.compatible and model.architecture not in _CONVERTERS:
            reason = f"{model.architecture} is known, but its conversion is not set up here"
            return replace(found, compatible=False, reason=reason)
        if model.quantization is not None:
            reason = f"the engine path converts unquantised checkpoints, not {model.quantization}"
            return replace(found, compatible=False, reason=reason)
        return found

    def commands(self, request: BuildRequest) -> tuple[tuple[str, ...], ...]:
        """The conversion and the build, as they run in the release image.

        Raises:
            UserError: Unknown architecture or quantisation.
        """
        architecture = str((read_json(request.model_dir / "config.json")["architectures"])[0])
        if architecture not in _CONVERTERS:
            raise UserError(
                f"tensorrt_llm: no conversion is known for {architecture}, only for "
                f"{', '.join(_CONVERTERS)}; use the engine tensorrt_llm_pytorch"
            )
        checkpoint = request.out_dir / "checkpoint"
        return (
            tuple(self._convert(request, _CONVERTERS[architecture], checkpoint)),
            tuple(self._build_command(request, checkpoint)),
        )

    def _convert(self, request: BuildRequest, folder: str, checkpoint: Path) -> list[str]:
        common: list[tuple[str, Any]] = [
            ("--model_dir", request.model_dir),
            ("--output_dir", checkpoint),
            ("--dtype", request.dtype),
            ("--tp_size", request.tensor_parallel),
        ]
        if request.quantization is None:
            return ["python", str(EXAMPLES / folder / "convert_checkpoint.py"), *render(common)]
        if request.quantization not in QUANTISATIONS:
            raise UserError(
                f"tensorrt_llm: quantisation {request.quantization!r}: use one of "
                f"{', '.join(QUANTISATIONS)}"
            )
        qformat, _ = QUANTISATIONS[request.quantization]
        script = str(EXAMPLES / "quantization" / "quantize.py")
        options = [
            *common,
            ("--qformat", qformat),
            ("--calib_dataset", request.calibration_dir),
            # The default of 128 must divide the hidden size; small models need less.
            ("--awq_block_size", _awq_block(request.model_dir) if "awq" in qformat else None),
        ]
        return ["python", script, *render(options)]

    def _build_command(self, request: BuildRequest, checkpoint: Path) -> list[str]:
        options: list[tuple[str, Any]] = [
            ("--checkpoint_dir", checkpoint),
            ("--output_dir", request.out_dir / "engine"),
            ("--max_batch_size", request.max_batch_size),
            ("--max_input_len", request.max_input_tokens),
            ("--max_seq_len", request.max_total_tokens),
            ("--max_num_tokens", max(request.max_input_tokens, 8192)),
            ("--gemm_plugin", "auto"),
            ("--kv_cache_type", "paged"),
            ("--remove_input_padding", "enable"),
            ("--use_paged_context_fmha", "enable"),
            ("--workers", request.tensor_parallel),
        ]
        if request.lora_rank is not None:
            options += [("--lora_plugin", "auto"), ("--max_lora_rank", request.lora_rank)]
        return ["trtllm-build", *render(options)]

    def build(self, request: BuildRequest) -> BuildReport:
        """Convert and build, where there is a GPU and TensorRT-LLM.

        Raises:
            UserError: The request can't be met by any machine.
            TunelineError: A command failed; its last line.
        """
        commands = self.commands(request)
        obstacle = self._obstacle(request)
        if obstacle:
            return BuildReport(self.name, False, f"not built: {obstacle}", commands)
        started = time.monotonic()
        for command in commands:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
                raise TunelineError(
                    f"{Path(command[0]).name} ended with code {answer.returncode}: "
                    f"{lines[-1] if lines else 'no message'}"
                )
        engine_dir = request.out_dir / "engine"
        seconds = time.monotonic() - started
        identity = self.identity(engine_dir)
        return BuildReport(self.name, True, "built and identified", commands, identity, seconds)

    def _obstacle(self, request: BuildRequest) -> str | None:
        gpus = query_gpus()
        if not gpus or shutil.which("trtllm-build") is None:
            lacking = [] if gpus else ["no GPU"]
            lacking += [] if shutil.which("trtllm-build") else ["no trtllm-build"]
            return f"needs a GPU pod with tensorrt-llm {VERSION} ({' and '.join(lacking)} here)"
        if request.quantization is not None:
            least = QUANTISATIONS[request.quantization][1]
            have = min(float(gpu["compute_cap"]) for gpu in gpus)
            if have < least:
                return (
                    f"{request.quantization} needs compute capability {least}, the GPU has {have}"
                )
        return None

    def identity(self, engine_dir: Path) -> dict[str, Any]:
        """What an engine directory is tied to.

        Its own config.json names the version, limits and quantisation but no GPU, driver or
        compute capability, which is what it fails on elsewhere; those are noted from here.
        """
        config = read_json(engine_dir / "config.json")
        build = config.get("build_config", {})
        limits = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
        return {
            "engine": self.name,
            "version": f"tensorrt_llm {config.get('version')}",
            "limits": {name: build.get(name) for name in limits},
            "dtype": config.get("pretrained_config", {}).get("dtype"),
            "quantization": config.get("pretrained_config", {}).get("quantization"),
            "mapping": config.get("pretrained_config", {}).get("mapping"),
            **machine_identity(),
            "files": hash_tree(engine_dir),
        }

    def command(self, request: ServeRequest) -> list[str]:
        """`trtllm-serve …`; an engine directory needs backend and tokenizer named.

        Raises:
            UserError: No tokenizer directory is given.
        """
        if request.tokenizer is None:
            raise UserError("tensorrt_llm: an engine holds no tokenizer; give its directory")
        return serve_command(request, backend="tensorrt")


def serve_command(request: ServeRequest, *, backend: str) -> list[str]:
    """`trtllm-serve …`, for an engine directory or a checkpoint.

    Args:
        request: What to serve; its adapters are not part of the command.
        backend: `tensorrt` or `pytorch`.
    """
    return [
        "trtllm-serve",
        str(request.model),
        *render(
            [
                ("--backend", backend),
                ("--tokenizer", request.tokenizer),
                ("--host", request.host),
                ("--port", request.port),
                ("--max_batch_size", request.max_batch_size),
                ("--max_seq_len", request.max_total_tokens),
                ("--tp_size", request.tensor_parallel),
            ]
        ),
    ]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def parser_of(program: str) -> argparse.ArgumentParser:
    """A parser for one of the release's programs, made from the table of flags.

    Args:
        program: `trtllm-build`, `convert_checkpoint.py`, `quantize.py` or `trtllm-serve`.
    """
    table = json.loads(_FLAGS.read_text(encoding="utf-8"))[program]
    parser = _Parser(prog=program, allow_abbrev=False, add_help=False)
    for flag, kind in table["values"].items():
        if isinstance(kind, list):
            parser.add_argument(flag, choices=kind)
        elif kind == "list":
            parser.add_argument(flag, nargs="+")
        else:
            parser.add_argument(flag, type=_TYPES[kind])
    for flag in table["switches"]:
        parser.add_argument(flag, action="store_true")
    if program == "trtllm-serve":
        parser.add_argument("model")
    return parser


def check_command(command: Sequence[str]) -> argparse.Namespace:
    """Parse one of our command lines as the release would.

    Raises:
        UserError: It would be refused.
    """
    skip = 2 if command[0] == "python" else 1
    return parser_of(Path(command[skip - 1]).name).parse_args(list(command[skip:]))


def _awq_block(model_dir: Path) -> int:
    hidden = int(read_json(model_dir / "config.json")["hidden_size"])
    for block in (128, 64, 32):
        if hidden % block == 0:
            return block
    raise UserError(f"int4_awq: no block size divides a hidden size of {hidden}; use fp8 or none")
