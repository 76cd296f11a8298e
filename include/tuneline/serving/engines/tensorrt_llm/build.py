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
    """Copy a checkpoint in the form that transformers 4 reads, its weights as links or not."""
    target.mkdir(parents=True)
    portable = {CONFIG: portable_config, TOKENIZER_CONFIG: portable_tokenizer_config}
    for path in model_files(source):
        copy = target / path.name
        if is_weights(path.name) or path.name == _WEIGHTS_INDEX:
            if weights:
                copy.symlink_to(path.resolve())
        elif change := portable.get(path.name):
            document = json.dumps(change(read_json(path)), indent=2, ensure_ascii=False)
            copy.write_text(document, encoding="utf-8")
        else:
            shutil.copyfile(path, copy)


def workplace(out_dir: Path) -> Path:
    """Return the folder next to the one that is served, with what a build writes meanwhile."""
    return out_dir.with_name(f"{out_dir.name}-work")


def prepare(request: BuildRequest) -> None:
    """Write the model and the calibration texts of a build."""
    work = workplace(request.out_dir)
    shutil.rmtree(work, ignore_errors=True)
    copy_portable(request.model_dir, work / "model", weights=True)
    if request.quantization is None:
        return
    (work / "calibration").mkdir()
    # quantize.py loads the folder as a dataset, its split `train` and its column `text`.
    rows = "".join(json.dumps({"text": text}) + "\n" for text in request.calibration)
    (work / "calibration" / "train.jsonl").write_text(rows, encoding="utf-8")


def build_commands(request: BuildRequest) -> list[list[str]]:
    """Return the command lines of conversion and build.

    Raises:
        UserError: if architecture or quantisation is unknown, or has nothing to calibrate on.
    """
    architecture = read_facts(request.model_dir).architecture
    if architecture not in CONVERTERS:
        raise UserError(
            f"tensorrt_llm: no conversion is known for {architecture}, only for "
            f"{', '.join(CONVERTERS)}; use the engine tensorrt_llm_pytorch"
        )
    return [_conversion(request, CONVERTERS[architecture]), _engine_build(request)]


def obstacle(request: BuildRequest) -> str | None:
    """Return what keeps this machine from building the engine; None if nothing does."""
    if lacks := lacking("trtllm-build", "trtllm-serve"):
        return lacks
    if request.quantization is not None:
        least = QUANTISATIONS[request.quantization]
        have = min(float(gpu["compute_cap"]) for gpu in query_gpus())
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
    """Run a program of TensorRT-LLM, or raise TunelineError if it failed, with its last line."""
    name = Path(command[1] if command[0] == PYTHON else command[0]).name
    run_child(command, f"{name} failed", os.environ)


def _conversion(request: BuildRequest, folder: str) -> list[str]:
    work = workplace(request.out_dir)
    options = {
        "--model_dir": work / "model",
        "--output_dir": work / "checkpoint",
        "--dtype": "float16",
        "--tp_size": 1,
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
        "--calib_dataset": work / "calibration",
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


def _engine_build(request: BuildRequest) -> list[str]:
    options = {
        "--checkpoint_dir": workplace(request.out_dir) / "checkpoint",
        "--output_dir": request.out_dir / ENGINE_FOLDER,
        "--max_batch_size": max(LEAST_BATCH, request.max_batch_size),
        # The engine is free to give all of its context but one token to the prompt.
        "--max_input_len": request.max_total_tokens - 1,
        "--max_seq_len": request.max_total_tokens,
        "--max_num_tokens": max(request.max_total_tokens - 1, MAX_NUM_TOKENS),
        "--gemm_plugin": "auto",
        "--kv_cache_type": "paged",
        "--remove_input_padding": "enable",
        "--use_paged_context_fmha": "enable",
        "--workers": 1,
    }
    switches = ["--gather_context_logits"] if request.context_logits else []
    return ["trtllm-build", *arguments(options), *switches]
