"""Quantised variants, measured beside the unquantised model, and one chosen by rule.

Proves what quantisation does to this model: size, memory and speed against
perplexity, the KL divergence from f16 token by token (as llama-perplexity does
it) and the task metric. Everything is measured on validation rows through the
engine that serves; the hold-out is not touched, since a choice is made here.
The smallest variant whose losses stay within the limits is chosen, and its
bytes are what every later item judges and what ships.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
# Standard errors that the task metric may drop by chance.
NOISE_FACTOR = 2.0


@dataclass(frozen=True)
class Served:
    """How a variant answered the quality rows through the server."""

    answers: tuple[str, ...]
    tokens_per_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    `metric_drop` is against f16 on the same rows, `metric_noise` its standard error.
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
        """The configured limit of the metric's drop, or the one that follows from its noise."""
        return NOISE_FACTOR * self.metric_noise if limit is None else limit

    def within(self, limits: DeploymentConfig) -> bool:
        """Whether its losses are within the limits; the reference loses nothing."""
        if self.name == REFERENCE:
            return True
        drop = self.allowed_drop(limits.max_metric_drop)
        return self.mean_kl <= limits.max_kl and self.metric_drop <= drop


def choose(variants: Sequence[Variant], limits: DeploymentConfig) -> Variant | None:
    """The smallest variant within the limits, None when there is none.

    Args:
        variants: those that may be chosen.
        limits: `max_kl` and `max_metric_drop`.
    """
    return min(
        (variant for variant in variants if variant.within(limits)),
        key=lambda variant: variant.bytes,
        default=None,
    )


def ask_variant(ctx: StepContext, path: Path, rows: Sequence[Row], threads: int) -> Served:
    """Answer the rows through a server of the variant; speed and memory are the server's."""
    parallel = ctx.config.deployment.parallel
    with serve(path, ctx.config, threads=threads) as server, server.client() as client:
        start = time.perf_counter()
        results = client.complete_batch(
            [row.prompt for row in rows],
            concurrency=parallel,
            max_tokens=ctx.config.evaluation.max_new_tokens,
        )
        seconds = time.perf_counter() - start
        memory = server.memory_bytes()
    tokens = sum(result.usage.completion_tokens for result in results)
    return Served(tuple(result.text for result in results), tokens / seconds, memory)


def scored_tokens(renderer: Renderer, rows: Sequence[Row]) -> tuple[list[list[int]], list[int]]:
    """Token ids of whole rows, and where each row's answer starts."""
    whole = renderer.encode([renderer.text(row.messages) for row in rows])
    asked = renderer.encode([renderer.text(row.prompt, ask=True) for row in rows])
    return whole, [len(ids) for ids in asked]


def measure_distances(
    files: Mapping[str, Path],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    threads: int,
) -> dict[str, Divergence]:
    """Perplexity of every variant and its KL divergence from f16.

    The reference is evaluated with each of the others anyway, so it gets a run of
    its own only when it is alone.

    Args:
        files: the variants, f16 among them.
        sequences: token ids of rows.
        starts: where each row's answer starts; only answers count.
        threads: to compute with.
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
        p99_kl=0.0,
        max_kl=0.0,
        same_top_token=1.0,
    )
    return found


def judge(
    chosen: Variant, variants: Sequence[Variant], limits: DeploymentConfig
) -> list[Measurement]:
    """What decides: the chosen variant's losses, and that there was a choice.

    Raises:
        UserError: the configured drop is tighter than the noise.
    """
    found = [
        measure("variants_measured", len(variants), "variants", ">=", 2, on_breach="warn"),
        measure("chosen", chosen.name, "variant"),
        measure("chosen_bytes", chosen.bytes, "bytes"),
    ]
    if chosen.name == REFERENCE:
        return [*found, measure("chosen_mean_kl", 0.0, "nats", "<=", limits.max_kl)]
    allowed = chosen.allowed_drop(limits.max_metric_drop)
    return [
        *found,
        measure(
            "chosen_mean_kl",
            round(chosen.mean_kl, 5),
            "nats",
            "<=",
            limits.max_kl,
            noise=round(chosen.mean_kl_error, 6),
        ),
        measure(
            "chosen_metric_drop",
            round(chosen.metric_drop, 4),
            "share",
            "<=",
            round(allowed, 4),
            noise=chosen.metric_noise,
            tolerance=allowed,
        ),
    ]


def run(ctx: StepContext) -> Evidence:
    """Measure the variants on validation rows, choose one and store its bytes."""
    config, limits = ctx.config, ctx.config.deployment
    rows = validation_rows(ctx, limits.quality_rows)
    task = choose_task(
        config.evaluation.metric, config.data.label_field, [row.answer for row in rows]
    )
    merged = ctx.input_dir("export_candidate", "merged")
    files: dict[str, Path] = {REFERENCE: ctx.input("export_candidate", "candidate.gguf")}
    for name in map(str, limits.variants):
        if name not in files:
            ctx.log(f"quantising to {name}")
            files[name] = quantize(files[REFERENCE], ctx.scratch / f"{name}.gguf", name).path
    sequences, starts = scored_tokens(
        Renderer(load_tokenizer(merged), config.data.target_format), rows
    )

    threads = scoring_threads()
    expected = [row.answer for row in rows]
    served = {}
    for name, path in files.items():
        ctx.log(f"asking {name}")
        served[name] = ask_variant(ctx, path, rows, threads)
    right = {name: scores(task, entry.answers, expected) for name, entry in served.items()}
    ctx.log("comparing distributions token by token")
    distances = measure_distances(files, sequences, starts, threads)
    variants = [
        _variant(name, path, served[name], distances[name], (right[name], right[REFERENCE]))
        for name, path in files.items()
    ]
    allowed = [variant for variant in variants if variant.name in limits.variants]
    chosen = choose(allowed, limits)
    table = [{**asdict(variant), "within_limits": variant.within(limits)} for variant in variants]
    (ctx.out / "variants.json").write_text(json.dumps(table, indent=1))
    if chosen is None:
        names = ", ".join(limits.variants)
        return ctx.conclude(
            f"no variant of {names} stays within the limits; add f16 to deployment.variants",
            [measure("variants_within_limits", 0, "variants", ">=", 1)],
        )
    reason = _reason(chosen, variants, limits)
    shutil.copyfile(files[chosen.name], ctx.out / "model.gguf")
    choice: dict[str, Any] = {
        "schema": "tuneline/choice/1",
        "variant": chosen.name,
        "reason": reason,
        "sha256": chosen.sha256,
        "bytes": chosen.bytes,
        "judged_on": [row.row_id for row in rows],
    }
    (ctx.out / "choice.json").write_text(json.dumps(choice, indent=1))
    return ctx.conclude(
        reason,
        [
            *judge(chosen, variants, limits),
            *_numbers(variants),
            measure("rows_judged_on", len(rows), "rows"),
            measure("chosen_sha256", chosen.sha256, "sha256"),
        ],
    )


def _variant(
    name: str, path: Path, served: Served, distance: Divergence, right: Sequence[Sequence[bool]]
) -> Variant:
    """Put a variant's measures together; `right` holds its flags and the reference's."""
    change = paired(right[1], right[0]).difference
    return Variant(
        name=name,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        memory_bytes=served.memory_bytes,
        tokens_per_s=round(served.tokens_per_s, 2),
        perplexity=round(distance.perplexity, 4),
        mean_kl=distance.mean_kl,
        mean_kl_error=distance.mean_kl_error,
        same_top_token=round(distance.same_top_token, 4),
        metric=round(sum(right[0]) / len(right[0]), 4),
        metric_drop=round(0.0 - change.value, 4),
        metric_noise=change.error,
    )


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
