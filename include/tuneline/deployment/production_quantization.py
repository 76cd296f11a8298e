"""production_quantization: measure quantised variants beside f16 and choose one by a rule.

Size, memory and speed of each variant are measured against its losses: perplexity, the KL
divergence from f16 token by token (as llama-perplexity does it) and the task metric. Everything
is measured on validation rows through the engine that serves; the hold-out is not used, since a
choice is made here. The smallest variant whose losses stay within the limits is chosen; its
bytes are those that every later item judges and that ship.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuneline.artifacts.deployment import CHOICE, MODEL, Choice
from tuneline.artifacts.training import CANDIDATE_GGUF, MERGED
from tuneline.config import DeploymentConfig
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.gguf.quantize import quantize
from tuneline.harness.answers import choose_task, scores
from tuneline.harness.intervals import paired
from tuneline.harness.rows import validation_rows
from tuneline.harness.served_models import scoring_threads, serve
from tuneline.models.resolver import load_tokenizer
from tuneline.run import StepContext
from tuneline.serving.engines.llama_cpp.perplexity import Divergence, perplexity_and_kl
from tuneline.store import sha256_file

REFERENCE = "f16"
# Standard errors by which the task metric may drop by chance.
NOISE_FACTOR = 2.0


@dataclass(frozen=True)
class Variant:
    """The measures of one variant.

    Attributes:
        name: `f16` or a quantisation.
        bytes: size of the file, in bytes.
        sha256: hash of the file.
        memory_bytes: resident memory of its server, in bytes.
        tokens_per_s: speed with all slots taken, in tokens/s.
        perplexity: perplexity of the answers.
        mean_kl: mean KL divergence from f16, in nats.
        mean_kl_error: standard error of `mean_kl`.
        same_top_token: share of positions with the same most probable token as f16.
        metric: the task metric, a share.
        metric_drop: loss of the metric against f16 on the same rows.
        metric_noise: standard error of `metric_drop`.
    """

    name: str
    bytes: int
    sha256: str
    memory_bytes: int
    tokens_per_s: float
    perplexity: float
    mean_kl: float
    mean_kl_error: float
    same_top_token: float
    metric: float
    metric_drop: float
    metric_noise: float

    def allowed_drop(self, limit: float | None) -> float:
        """Return the configured limit of the metric's drop, or the one given by its noise."""
        return NOISE_FACTOR * self.metric_noise if limit is None else limit

    def within(self, limits: DeploymentConfig) -> bool:
        """Return True if its losses are within the limits; the reference loses nothing."""
        if self.name == REFERENCE:
            return True
        drop = self.allowed_drop(limits.max_metric_drop)
        return self.mean_kl <= limits.max_kl and self.metric_drop <= drop


def choose(variants: Sequence[Variant], limits: DeploymentConfig) -> Variant | None:
    """Return the smallest variant within the limits, or None.

    Args:
        variants: the variants that may be chosen.
        limits: `max_kl` and `max_metric_drop`.
    """
    return min(
        (variant for variant in variants if variant.within(limits)),
        key=lambda variant: variant.bytes,
        default=None,
    )


def ask_variant(
    ctx: StepContext, path: Path, rows: Sequence[Row], threads: int
) -> tuple[list[str], dict[str, Any]]:
    """Have a server of the variant answer the rows; return its answers, speed and memory."""
    with serve(path, ctx.config, threads=threads) as server, server.client() as client:
        start = time.perf_counter()
        results = client.complete_batch(
            [row.prompt for row in rows],
            concurrency=ctx.config.deployment.parallel,
            max_tokens=ctx.config.evaluation.max_new_tokens,
        )
        seconds = time.perf_counter() - start
        memory = server.memory_bytes()
    speed = sum(result.usage.completion_tokens for result in results) / seconds
    answers = [result.text for result in results]
    return answers, {"tokens_per_s": round(speed, 2), "memory_bytes": memory}


def scored_tokens(renderer: Renderer, rows: Sequence[Row]) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of whole rows, and the index at which each answer starts."""
    whole = renderer.encode([renderer.text(row.messages) for row in rows])
    asked = renderer.encode([renderer.text(row.prompt, ask=True) for row in rows])
    return whole, [len(ids) for ids in asked]


def measure_distances(
    files: Mapping[str, Path],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    threads: int,
) -> dict[str, Divergence]:
    """Return each variant's perplexity and its KL divergence from f16.

    The reference is evaluated together with each other variant, so it is evaluated separately
    only if it is the only one.

    Args:
        files: the variants' files by name, f16 included.
        sequences: token ids of rows.
        starts: index at which each row's answer starts; only answers count.
        threads: number of threads.
    """
    others = [name for name in files if name != REFERENCE] or [REFERENCE]
    found = {
        name: perplexity_and_kl(
            files[REFERENCE], files[name], sequences, score_from=starts, threads=threads
        )
        for name in others
    }
    first = found[others[0]]
    found[REFERENCE] = replace(
        first,
        perplexity=first.reference_perplexity,
        mean_kl=0.0,
        mean_kl_error=0.0,
        same_top_token=1.0,
    )
    return found


def judge(
    chosen: Variant, variants: Sequence[Variant], limits: DeploymentConfig
) -> list[Measurement]:
    """Judge the chosen variant's losses, and that there was a choice.

    Raises:
        UserError: if the configured limit of the drop is below the measured noise.
    """
    found = [
        measure("variants_measured", len(variants), "variants", ">=", 2, on_breach="warn"),
        measure("chosen", chosen.name, "variant"),
        measure("chosen_bytes", chosen.bytes, "bytes"),
    ]
    kl, max_kl = round(chosen.mean_kl, 5), limits.max_kl
    if chosen.name == REFERENCE:
        return [*found, measure("chosen_mean_kl", kl, "nats", "<=", max_kl)]
    noise = round(chosen.mean_kl_error, 6)
    drop, allowed = round(chosen.metric_drop, 4), chosen.allowed_drop(limits.max_metric_drop)
    return [
        *found,
        measure("chosen_mean_kl", kl, "nats", "<=", max_kl, noise=noise),
        measure(
            "chosen_metric_drop",
            drop,
            "share",
            "<=",
            round(allowed, 4),
            noise=chosen.metric_noise,
            tolerance=allowed,
        ),
    ]


def quantised_files(ctx: StepContext) -> dict[str, Path]:
    """Return the file of each variant by name, quantised from the exported f16 file."""
    reference = CANDIDATE_GGUF.fetch(ctx)
    files = {REFERENCE: reference}
    for name in map(str, ctx.config.deployment.variants):
        if name not in files:
            ctx.log(f"quantising to {name}")
            files[name] = quantize(reference, ctx.scratch / f"{name}.gguf", name).path
    return files


def measure_variants(
    ctx: StepContext, files: Mapping[str, Path], rows: Sequence[Row]
) -> list[Variant]:
    """Measure every variant on the quality rows."""
    config = ctx.config
    expected = [row.answer for row in rows]
    task = choose_task(config.evaluation.metric, config.data.label_field, expected)
    renderer = Renderer(load_tokenizer(MERGED.fetch(ctx)), config.data.target_format)
    sequences, starts = scored_tokens(renderer, rows)
    threads = scoring_threads()
    right, costs = {}, {}
    for name, path in files.items():
        ctx.log(f"asking {name}")
        answers, costs[name] = ask_variant(ctx, path, rows, threads)
        right[name] = scores(task, answers, expected)
    ctx.log("comparing distributions token by token")
    distances = measure_distances(files, sequences, starts, threads)
    variants = []
    for name, path in files.items():
        distance, change = distances[name], paired(right[REFERENCE], right[name]).difference
        variants.append(
            Variant(
                name=name,
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
                **costs[name],
                perplexity=round(distance.perplexity, 4),
                mean_kl=distance.mean_kl,
                mean_kl_error=distance.mean_kl_error,
                same_top_token=round(distance.same_top_token, 4),
                metric=round(sum(right[name]) / len(rows), 4),
                metric_drop=round(0.0 - change.value, 4),
                metric_noise=change.error,
            )
        )
    return variants


def _reason(chosen: Variant, variants: Sequence[Variant], limits: DeploymentConfig) -> str:
    reference = next(variant for variant in variants if variant.name == REFERENCE)
    refused = [v for v in variants if v.bytes < chosen.bytes and not v.within(limits)]
    text = (
        f"{chosen.name} ships: {chosen.bytes / 1e6:.0f} MB of {reference.bytes / 1e6:.0f} MB, "
        f"{chosen.tokens_per_s:.0f} against {reference.tokens_per_s:.0f} tokens/s, KL "
        f"{chosen.mean_kl:.4f} nats, metric {chosen.metric:.3f} against {reference.metric:.3f}"
    )
    for variant in refused:
        text += (
            f"; {variant.name} is smaller but loses too much (KL {variant.mean_kl:.4f}, "
            f"metric drop {variant.metric_drop:.3f})"
        )
    return text


def _numbers(variants: Sequence[Variant]) -> list[Measurement]:
    found = []
    for v in variants:
        found += [
            measure(f"{v.name}_bytes", v.bytes, "bytes"),
            measure(f"{v.name}_memory", v.memory_bytes, "bytes"),
            measure(f"{v.name}_tokens_per_s", v.tokens_per_s, "tokens/s"),
            measure(f"{v.name}_perplexity", v.perplexity, "perplexity"),
            measure(f"{v.name}_mean_kl", round(v.mean_kl, 6), "nats"),
            measure(f"{v.name}_metric", v.metric, "share"),
        ]
    return found


def run(ctx: StepContext) -> Evidence:
    """Measure the variants on validation rows, choose one and store its bytes."""
    limits = ctx.config.deployment
    rows = validation_rows(ctx, limits.quality_rows)
    files = quantised_files(ctx)
    variants = measure_variants(ctx, files, rows)
    table = [{**asdict(variant), "within_limits": variant.within(limits)} for variant in variants]
    ctx.write_json("variants.json", table)
    chosen = choose([v for v in variants if v.name in limits.variants], limits)
    if chosen is None:
        names = ", ".join(limits.variants)
        return ctx.conclude(
            f"no variant of {names} stays within the limits; add f16 to deployment.variants",
            [measure("variants_within_limits", 0, "variants", ">=", 1)],
        )
    reason = _reason(chosen, variants, limits)
    shutil.copyfile(files[chosen.name], MODEL.path(ctx))
    choice = Choice(
        variant=chosen.name,
        reason=reason,
        sha256=chosen.sha256,
        bytes=chosen.bytes,
        judged_on=[row.row_id for row in rows],
    )
    CHOICE.write(ctx, choice)
    return ctx.conclude(
        reason,
        [
            *judge(chosen, variants, limits),
            *_numbers(variants),
            measure("rows_judged_on", len(rows), "rows"),
            measure("chosen_sha256", chosen.sha256, "sha256"),
        ],
    )
