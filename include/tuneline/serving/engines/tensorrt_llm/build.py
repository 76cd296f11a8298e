"""The command lines of TensorRT-LLM 1.2.1's engine path: quantise or convert, then build.

They are those of NVIDIA's release image; a test parses them with the flags of the release. The
programs run in NVIDIA's own Python, `python` on the image's PATH, and never in ours.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.models.base_model import is_weights, model_files, read_json
from tuneline.serving.engines.engine import BuildRequest, query_gpus, read_facts
from tuneline.serving.engines.server import arguments
from tuneline.serving.processes import run_child

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_WEIGHTS_INDEX = "model.safetensors.index.json"

# Folder of the conversion scripts in NVIDIA's release image.
EXAMPLES = Path("/app/tensorrt_llm/examples")
# NVIDIA's Python in that image.
PYTHON = "python"

# Quantisations of quantize.py, with the least compute capability. All of them calibrate.
QUANTISATIONS = {"int4_awq": 8.0, "int8_sq": 8.0, "fp8": 8.9, "nvfp4": 10.0}

# Folder of convert_checkpoint.py for an architecture; the others are not tested here.
CONVERTERS = {
    "LlamaForCausalLM": "models/core/llama",
    "MistralForCausalLM": "models/core/llama",
    "Qwen2ForCausalLM": "models/core/qwen",
    "Qwen3ForCausalLM": "models/core/qwen",
}

# What the served folder consists of.
ENGINE_FOLDER, TOKENIZER_FOLDER = "engine", "tokenizer"
# Tokens of all requests in one step. Prompts are not split, so the longest one must fit.
MAX_NUM_TOKENS = 8192
# A test of two answers at once is part of several steps.
LEAST_BATCH = 2


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the fields that transformers 4 reads beside those of 5.

    Raises:
        UserError: if the rotary embedding differs between layers, which 4 has no field for.
    """
    found = dict(config)
    if "dtype" in found:
        found.setdefault("torch_dtype", found["dtype"])
    rope = found.get("rope_parameters")
    if not rope:
        return found
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(
            "the model's layers have different rotary embeddings, which the engine path of "
            "TensorRT-LLM has no setting for; use deployment.engine: tensorrt_llm_pytorch"
        )
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        found["rope_scaling"] = scaling
    return found


def portable_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json that transformers 4 loads as the same tokenizer."""
    found = {name: value for name, value in config.items() if name != "backend"}
    if found.get("tokenizer_class") in (None, "TokenizersBackend"):
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found


def copy_portable(source: Path, target: Path, *, weights: bool) -> None:
    """Copy a checkpoint in the form that transformers 4 reads.

    Args:
        weights: whether the weights are linked into the copy; otherwise it has none.
    """
    target.mkdir(parents=True)
    for path in model_files(source):
        if is_weights(path.name) or path.name == _WEIGHTS_INDEX:
            if weights:
                (target / path.name).symlink_to(path.resolve())
        elif path.name == CONFIG:
            _write(target / CONFIG, portable_config(read_json(path)))
        elif path.name == TOKENIZER_CONFIG:
            _write(target / TOKENIZER_CONFIG, portable_tokenizer_config(read_json(path)))
        else:
            shutil.copyfile(path, target / path.name)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")


class Workplace:
    """The folders of one build, beside the folder that is served.

    Attributes:
        folder: all of them; deleted after the build.
        model: the checkpoint as TensorRT-LLM's transformers reads it.
        calibration: dataset that quantisations calibrate on.
        checkpoint: the converted or quantised checkpoint.
    """

    def __init__(self, out_dir: Path) -> None:
        self.folder = out_dir.with_name(f"{out_dir.name}-work")
        self.model = self.folder / "model"
        self.calibration = self.folder / "calibration"
        self.checkpoint = self.folder / "checkpoint"

    def prepare(self, request: BuildRequest) -> None:
        """Write the model and the calibration texts."""
        self.clear()
        copy_portable(request.model_dir, self.model, weights=True)
        if request.quantization is None:
            return
        self.calibration.mkdir()
        # quantize.py loads the folder as a dataset, its split `train` and its column `text`.
        rows = (json.dumps({"text": text}) for text in request.calibration)
        (self.calibration / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def clear(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def build_commands(request: BuildRequest) -> list[list[str]]:
    """Return the command lines of conversion and build.

    Raises:
        UserError: if the architecture or the quantisation is unknown, or a quantisation has
            nothing to calibrate on.
    """
    architecture = read_facts(request.model_dir).architecture
    if architecture not in CONVERTERS:
        raise UserError(
            f"tensorrt_llm: no conversion is known for {architecture}, only for "
            f"{', '.join(CONVERTERS)}; use the engine tensorrt_llm_pytorch"
        )
    work = Workplace(request.out_dir)
    return [_conversion(request, CONVERTERS[architecture], work), _engine_build(request, work)]


def obstacle(request: BuildRequest) -> str | None:
    """Return what keeps this machine from building the engine; None if nothing does."""
    if lacks := lacking("trtllm-build", "trtllm-serve"):
        return lacks
    gpus = query_gpus()
    if len(gpus) < request.tensor_parallel:
        return f"it needs {request.tensor_parallel} GPUs, this pod has {len(gpus)}"
    if request.quantization is not None:
        least = QUANTISATIONS[request.quantization]
        have = min(float(gpu["compute_cap"]) for gpu in gpus)
        if have < least:
            return f"{request.quantization} needs compute capability {least}, the GPU has {have}"
    return None


def lacking(*programs: str) -> str | None:
    """Return the part that this machine lacks to build or serve, None if it has all."""
    parts = [] if query_gpus() else ["no GPU"]
    parts += [f"no {program}" for program in programs if shutil.which(program) is None]
    if parts:
        return f"it needs a GPU pod with tensorrt-llm ({' and '.join(parts)} here)"
    return None


def run_command(command: Sequence[str]) -> None:
    """Run a program of TensorRT-LLM.

    Raises:
        TunelineError: if it failed, with its last line.
    """
    name = Path(command[1] if command[0] == PYTHON else command[0]).name
    run_child(command, f"{name} failed", os.environ)


def _conversion(request: BuildRequest, folder: str, work: Workplace) -> list[str]:
    options = {
        "--model_dir": work.model,
        "--output_dir": work.checkpoint,
        "--dtype": request.dtype,
        "--tp_size": request.tensor_parallel,
    }
    method = request.quantization
    if method is None:
        return [PYTHON, str(EXAMPLES / folder / "convert_checkpoint.py"), *arguments(options)]
    if method not in QUANTISATIONS:
        raise UserError(
            f"tensorrt_llm: quantisation {method!r}: use one of {', '.join(QUANTISATIONS)}"
        )
    if not request.calibration:
        raise UserError(f"tensorrt_llm: {method} calibrates on texts; give some training rows")
    quantisation = {
        "--qformat": method,
        # Without it NVIDIA's script downloads news articles and calibrates on those.
        "--calib_dataset": work.calibration,
        "--calib_size": len(request.calibration),
        # The default of 128 must divide the hidden size; small models need less.
        "--awq_block_size": _awq_block(request.model_dir) if "awq" in method else None,
    }
    script = str(EXAMPLES / "quantization" / "quantize.py")
    return [PYTHON, script, *arguments({**options, **quantisation})]


def _awq_block(model_dir: Path) -> int:
    hidden = int(read_json(model_dir / "config.json")["hidden_size"])
    for block in (128, 64, 32):
        if hidden % block == 0:
            return block
    raise UserError(f"int4_awq: no block size divides a hidden size of {hidden}; use fp8 or none")


def _engine_build(request: BuildRequest, work: Workplace) -> list[str]:
    options = {
        "--checkpoint_dir": work.checkpoint,
        "--output_dir": request.out_dir / ENGINE_FOLDER,
        "--max_batch_size": max(LEAST_BATCH, request.max_batch_size),
        "--max_input_len": request.max_input_tokens,
        "--max_seq_len": request.max_total_tokens,
        "--max_num_tokens": max(request.max_input_tokens, MAX_NUM_TOKENS),
        "--gemm_plugin": "auto",
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",
        "--use_paged_context_fmha": "enable",
        "--workers": request.tensor_parallel,
        "--lora_plugin": None if request.lora_rank is None else "auto",
        "--max_lora_rank": request.lora_rank,
    }
    switches = ["--gather_context_logits"] if request.context_logits else []
    return ["trtllm-build", *arguments(options), *switches]
