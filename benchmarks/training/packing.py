"""The packing part of the training benchmark: short rows, packed against padded.

Both train the same rows in the same optimiser steps, and a micro-batch may hold as many tokens on
either side: as many rows of the greatest length as fit. Padded micro-batches have that many rows,
packs that many tokens. Neither has the kernels for CPUs, so that a CPU runs the code of a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, System, score_results
from benchmarks.contest.options import Options
from benchmarks.contest.report import Report
from benchmarks.contest.trial import Sample
from benchmarks.training.rows import batches_of, mixed_rows, write_rows
from benchmarks.training.trials import UNITS
from tuneline.training.loop.packs import BatchShape

SEED = 7
RUNS = 3
PACKED, PADDED = "packed", "padded"
RATIO = "short_rows_packed_vs_padded"
MODULE = "benchmarks.training.trials"
# Token ids that every tokenizer has, special ones left out.
VOCABULARY = range(100, 4_000)


@dataclass(frozen=True)
class Shape:
    """How much is trained.

    Attributes:
        effective_batch: rows of an optimiser step.
        micro_batch: rows of a padded micro-batch.
        longest: tokens of the longest row.
        median: tokens of a middling row.
        warm_up: steps that are not timed.
        steps: all steps.
    """

    effective_batch: int
    micro_batch: int
    longest: int
    median: int
    warm_up: int
    steps: int

    @property
    def most_tokens(self) -> int:
        """Tokens of a micro-batch, on either side."""
        return self.micro_batch * self.longest


# On a CPU small enough for minutes, on a GPU large enough to fill it.
ON_CPU = Shape(effective_batch=16, micro_batch=2, longest=384, median=48, warm_up=1, steps=4)
ON_GPU = Shape(effective_batch=128, micro_batch=4, longest=2048, median=120, warm_up=2, steps=8)


def measure(
    options: Options, contest: Contest, job: Mapping[str, Any], shape: Shape, suffix: str = ""
) -> Report:
    """Measure both in turn.

    Args:
        options: of the benchmark.
        contest: runs the trials.
        job: base, adapter, device and the like.
        shape: how much is trained.
        suffix: of the figures' names.
    """
    count = shape.steps * shape.effective_batch
    rows = mixed_rows(count, shape.longest, shape.median, VOCABULARY, SEED)
    path = write_rows(Path(options.folder) / f"short-rows{suffix}.jsonl", rows)
    work = {
        **job,
        "rows": path,
        "validation": "",
        "batch": shape.effective_batch,
        "micro_batch": shape.micro_batch,
        "most_tokens": shape.most_tokens,
        "warm_up": shape.warm_up,
        "steps": shape.steps,
        "seed": SEED,
    }
    systems = [
        System(name, f"{MODULE}:short_rows", {"packed": name == PACKED})
        for name in (PACKED, PADDED)
    ]
    samples = contest.measure(systems, work, options.runs or RUNS)
    results = [
        replace(result, metric=f"short_rows_{result.metric}{suffix}", unit=UNITS[result.metric])
        for name, runs in samples.items()
        for result in score_results(name, runs)
    ]
    batches = batches_of(rows, shape.effective_batch, shape.steps, SEED)
    lengths = [len(row.ids) for batch in batches for row in batch]
    padded = BatchShape.padded(lengths, shape.effective_batch, shape.micro_batch, end_to_end=False)
    about = {
        f"short_rows{suffix}": count,
        f"short_rows_mean_tokens{suffix}": round(fmean(lengths), 1),
        f"short_rows_padding_share{suffix}": round(padded.padding_share, 3),
    }
    return Report(about, results, {RATIO + suffix: best_ratio(samples)})


def best_ratio(samples: Mapping[str, Sequence[Sample]]) -> float:
    """Return the speed of the best packed run over that of the best padded one.

    Other programs on the machine can only slow a run down.
    """
    best = {
        name: max(sample.scores["tokens_per_s"] for sample in runs)
        for name, runs in samples.items()
    }
    return round(best[PACKED] / best[PADDED], 3)
