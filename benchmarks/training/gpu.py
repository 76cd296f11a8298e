"""The GPU part of the training benchmark: a model of the shape of Llama-3.1-8B, random weights.

LoRA in bf16 and QLoRA in NF4, micro-batch 2. Every row has 2,048 tokens, as rows packed to that
length have: neither side has anything left to pad or to pack.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, score_results
from benchmarks.contest.report import NotMeasured, Report, Result, ratio
from benchmarks.training.rows import random_rows, write_rows
from benchmarks.training.trials import UNITS
from benchmarks.workloads.random_llama import LINEAR_LAYERS, LLAMA_8B, write_random_llama
from tuneline.machine.cores import available_cores

ROW, BATCH = 2048, 2
WARM_UP, STEPS = 3, 10
RUNS = 3
SEED = 7
METHODS = {"LoRA": False, "QLoRA": True}
RATIOS = (
    "gpu_lora_tokens_per_s_vs_trl",
    "gpu_lora_memory_vs_trl",
    "gpu_qlora_tokens_per_s_vs_trl",
    "gpu_qlora_memory_vs_trl",
)
MODULE = "benchmarks.training.trials"


def why_not(machine: Mapping[str, Any]) -> str | None:
    """Return the reason why no GPU can be measured, None if one can."""
    if machine["gpu"] is None:
        return "this machine has no NVIDIA GPU (nvidia-smi names none)"
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no GPU, though the machine has {machine['gpu']}; "
            "install a build of torch for CUDA"
        )
    return None


def measure(
    options: Options, contest: Contest, machine: Mapping[str, Any], tokenizer: Path
) -> Report:
    """Measure on the GPU, or say why not.

    Args:
        machine: of `describe`.
        tokenizer: directory of a model whose tokenizer stands in.
    """
    reason = why_not(machine)
    if reason is not None:
        what = "GPU: Llama-3.1-8B shape, LoRA and QLoRA"
        missing = NotMeasured(what, reason, RATIOS)
        return Report({}, [], {}, [missing])
    options.log("GPU: writing a random model of the shape of Llama-3.1-8B (16 GB)")
    base = write_random_llama(options.folder / "llama-8b", LLAMA_8B, tokenizer)
    job = gpu_job(options.folder, base, LLAMA_8B, ROW, "cuda")
    return contend(options, contest, job)


def gpu_job(
    folder: Path, base: Path, shape: Mapping[str, Any], row: int, device: str
) -> dict[str, Any]:
    """Return the job of the trials.

    Args:
        row: tokens of a row.
        device: "cuda", or "cpu" to try everything but the device.
    """
    rows = random_rows((WARM_UP + STEPS) * BATCH, row, range(shape["vocab_size"]), SEED)
    return {
        "base": str(base),
        "scratch": str(folder),
        "rows": write_rows(folder / "gpu-rows.jsonl", rows),
        "validation": "",
        "row": row,
        "threads": available_cores(),
        "device": device,
        "precision": "bf16",
        "checkpointing": True,
        "batch": BATCH,
        "steps": WARM_UP + STEPS,
        "warm_up": WARM_UP,
        "seed": SEED,
        "r": 16,
        "alpha": 32,
        "target_modules": LINEAR_LAYERS,
        "learning_rate": 2e-4,
    }


def trl_settings(row: int, find: Any = importlib.util.find_spec) -> dict[str, Any]:
    """TRL at its best with what is installed.

    Packing needs FlashAttention to keep rows apart without a mask over the whole block; on rows
    that fill it there is nothing to pack, so without FlashAttention it is left off, which is
    faster.

    Args:
        row: tokens of a block.
    """
    flash = find("flash_attn") is not None
    return {
        "sampling": "sequential",
        "liger": find("liger_kernel") is not None,
        "packing": flash,
        "max_length": row,
        "attention": "flash_attention_2" if flash else "sdpa",
    }


def contend(options: Options, contest: Contest, job: Mapping[str, Any]) -> Report:
    """Measure both systems with both methods, in turn."""
    told = trl_settings(job["row"])
    systems = [
        System(f"{who}, {method}", f"{MODULE}:{trial}", {"qlora": quantised, **settings})
        for method, quantised in METHODS.items()
        for who, trial, settings in (("tuneline", "tuneline", {}), ("TRL", "trl", told))
    ]
    samples = contest.measure(systems, job, options.runs or RUNS)
    results = [
        replace(result, metric=f"gpu_{result.metric}", unit=UNITS[result.metric])
        for name, runs in samples.items()
        for result in score_results(name, runs)
    ]
    about = {
        "gpu_model": "Llama-3.1-8B shape, random weights",
        "gpu_rows": f"{BATCH} × {job['row']} tokens",
        "gpu_trl": ", ".join(f"{name} {value}" for name, value in told.items()),
    }
    return Report(about, results, _ratios(results))


def _ratios(results: Sequence[Result]) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for method in METHODS:
        ours, theirs = f"tuneline, {method}", f"TRL, {method}"
        name = f"gpu_{method.lower()}"
        found[f"{name}_tokens_per_s_vs_trl"] = ratio(results, "gpu_tokens_per_s", ours, theirs)
        found[f"{name}_memory_vs_trl"] = ratio(results, "gpu_peak_memory", theirs, ours)
    return {name: number for name, number in found.items() if number is not None}
