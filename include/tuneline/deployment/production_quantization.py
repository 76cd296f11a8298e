"""production_quantization: measure quantised variants beside f16 and choose one by a rule.

The variants are those of the merged model, or, if adapter_merging decided that the adapter ships
unmerged, those of the base, each with the adapter beside it.

Size, memory and speed of each variant are measured against its losses: perplexity, the KL
divergence from f16 token by token and the task metric. Everything is measured on validation rows
through the engine that ships; the hold-out is not used, since a choice is made here. The smallest
variant whose losses stay within the limits is chosen; its bytes are those that every later item
judges and that ship. An engine that compiles is built of the chosen variant by build_engine.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.deployment import CHECKPOINT, CHOICE, MODEL, REFERENCE, Apart, Choice
from tuneline.artifacts.training import MERGED
from tuneline.asking.hardware import this_machine
from tuneline.asking.models import (
    engine_of,
    hashed,
    keep_apart,
    request_for,
    run_adapter,
    scoring_threads,
    server_of,
    ships_apart,
    unquantised,
    untuned,
)
from tuneline.asking.rows import answer_limit, calibration_texts, dataset_rows, validation_rows
from tuneline.asking.tasks import judge as judge_answers
from tuneline.asking.tasks import not_worse, task_of
from tuneline.config import DeploymentConfig
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.models.base_model import load_tokenizer
from tuneline.plots import save
from tuneline.serving.engines.divergence import Divergence, ScoredRow, rows_of
from tuneline.serving.engines.engine import Engine, ServedModel
from tuneline.serving.engines.server import ServeRequest
from tuneline.statistics import rows_for
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Variant:
    """The measures of one variant.

    Attributes:
        sha256: hash of its file, or of the list of its files' hashes.
        memory_bytes: resident memory of its server.
        tokens_per_s: speed with all slots taken.
        mean_kl: mean KL divergence from f16, in nats.
        same_top_token: share of positions with the same most probable token as f16.
        metric_drop: loss of the task metric against f16 on the same rows, a share.
        metric_drop_upper: upper end of its 95 % interval.
        rows_needed: rows that would show the loss to be within the limit or beyond it.
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
    metric_drop_upper: float
    rows_needed: int = 0

    def within(self, limits: DeploymentConfig) -> bool:
        """Return True if its losses are shown to be within the limits; the reference has none."""
        small = self.mean_kl <= limits.max_kl and self.metric_drop_upper <= limits.max_metric_drop
        return small or self.name == REFERENCE

    def refusal(self, limits: DeploymentConfig) -> str:
        """Return why it is not chosen although it is smaller, as a part of a sentence."""
        if self.mean_kl > limits.max_kl or self.metric_drop > limits.max_metric_drop:
            return (
                f"{self.name} is smaller but loses too much (KL {self.mean_kl:.4f}, metric drop "
                f"{self.metric_drop:.3f})"
            )
        return (
            f"{self.name} is smaller, but its metric drop of {self.metric_drop:.3f} may be up to "
            f"{self.metric_drop_upper:.3f}: about {self.rows_needed} rows would decide"
        )


def choose(variants: Sequence[Variant], limits: DeploymentConfig) -> Variant | None:
    """Return the smallest variant within the limits, or None."""
    fit = (variant for variant in variants if variant.within(limits))
    return min(fit, key=lambda variant: variant.bytes, default=None)


def ask_variant(
    ctx: StepContext, model: ServedModel, rows: Sequence[Row], threads: int
) -> tuple[list[str], dict[str, Any]]:
    """Have a server of the variant answer the rows; return its answers, speed and memory."""
    deployment = ctx.config.deployment
    with server_of(model, deployment, threads=threads) as server, server.client() as client:
        start = time.perf_counter()
        results = client.complete_batch(
            [row.prompt for row in rows],
            concurrency=deployment.parallel,
            max_tokens=answer_limit(ctx.run),
        )
        seconds = time.perf_counter() - start
        memory = server.memory_bytes()
    speed = sum(result.usage.completion_tokens for result in results) / seconds
    answers = [result.text for result in results]
    return answers, {"tokens_per_s": round(speed, 2), "memory_bytes": memory}


def scored_answers(renderer: Renderer, rows: Sequence[Row]) -> list[ScoredRow]:
    """Return the token ids of whole rows, and the places of their answers."""
    whole = renderer.encode([renderer.text(row.messages) for row in rows])
    asked = renderer.encode([renderer.text(row.prompt, ask=True) for row in rows])
    return rows_of(whole, list(map(len, asked)))


def measure_distances(
    engine: Engine,
    models: Mapping[str, ServedModel],
    rows: Sequence[ScoredRow],
    request: ServeRequest,
) -> dict[str, Divergence]:
    """Return the perplexity of each variant, f16 included, and its KL divergence from f16.

    The reference is evaluated together with each other variant, so it is evaluated separately
    only if it is the only one.
    """
    reference = models[REFERENCE].path
    others = {n: model.path for n, model in models.items() if n != REFERENCE}
    found = engine.distances(reference, others or {REFERENCE: reference}, rows, request)
    first = next(iter(found.values()))
    perplexity = first.reference_perplexity
    found[REFERENCE] = Divergence(first.tokens, perplexity, perplexity)
    return found


def judge(
    chosen: Variant, variants: Sequence[Variant], limits: DeploymentConfig
) -> list[Measurement]:
    """Judge the chosen variant's losses, and that there was a choice."""
    kl, max_kl = round(chosen.mean_kl, 5), limits.max_kl
    noise = None if chosen.name == REFERENCE else round(chosen.mean_kl_error, 6)
    found = [
        measure("variants_measured", len(variants), "variants", ">=", 2, on_breach="warn"),
        measure("chosen", chosen.name, "variant"),
        measure("chosen_mean_kl", kl, "nats", "<=", max_kl, noise=noise),
    ]
    if chosen.name == REFERENCE:
        return found
    upper = round(chosen.metric_drop_upper, 4)
    return [
        *found,
        measure("chosen_metric_drop", round(chosen.metric_drop, 4), "share"),
        measure("chosen_metric_drop_upper", upper, "share", "<=", limits.max_metric_drop),
    ]


def make_variants(
    ctx: StepContext, engine: Engine, names: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, ServedModel]:
    """Return the variants of these names; f16 is always the first of them.

    They are made of the exported model or, where the adapter ships unmerged, of the base.
    """
    apart = run_adapter(ctx, engine) if ships_apart(ctx) else None
    whole = unquantised(ctx) if apart is None else untuned(ctx)
    ending = ".gguf" if engine.form == "gguf" else ""
    made = {}
    for name in dict.fromkeys([REFERENCE, *names]):
        target = ctx.scratch / f"{name}{ending}"
        path = engine.make_variant(name, whole.path, target, texts=texts, log=ctx.log)
        model = whole if path == whole.path else hashed(engine.name, path)
        made[name] = model if apart is None else model.beside(apart)
    return made


def keep(ctx: StepContext, engine: Engine, chosen: str, model: ServedModel) -> Apart | None:
    """Store the chosen variant, unless it lies in the run already or is built again from it."""
    if model.adapter is not None:
        return keep_apart(ctx, engine, chosen, model)
    if engine.form == "gguf":
        shutil.copyfile(model.path, MODEL.path(ctx))
    elif engine.form == "checkpoint" and chosen != REFERENCE:
        shutil.copytree(model.path, CHECKPOINT.path(ctx))
    return None


def ship(
    ctx: StepContext,
    engine: Engine,
    name: str,
    model: ServedModel,
    *,
    reason: str,
    judged_on: Sequence[Row] = (),
) -> None:
    """Store a variant as the one that ships, and the choice."""
    choice = Choice(
        variant=name,
        engine=engine.name,
        reason=reason,
        sha256=model.sha256,
        bytes=model.bytes,
        judged_on=[row.row_id for row in judged_on],
        apart=keep(ctx, engine, name, model),
    )
    CHOICE.write(ctx, choice)


def measure_variants(
    ctx: StepContext,
    engine: Engine,
    models: Mapping[str, ServedModel],
    rows: Sequence[Row],
    renderer: Renderer,
) -> list[Variant]:
    """Measure every variant on the quality rows."""
    config = ctx.config
    expected, questions = [row.answer for row in rows], [row.prompt for row in rows]
    task = task_of(config, expected)
    threads = scoring_threads()
    judged, costs = {}, {}
    for name, model in models.items():
        ctx.log(f"asking {name}")
        answers, costs[name] = ask_variant(ctx, model, rows, threads)
        judged[name] = judge_answers(task, answers, expected, questions=questions)
    ctx.log("comparing distributions token by token")
    request = request_for(models[REFERENCE], config.deployment, threads=threads)
    distances = measure_distances(engine, models, scored_answers(renderer, rows), request)
    variants = []
    for name, model in models.items():
        distance = distances[name]
        change = not_worse(judged[REFERENCE], judged[name], config.deployment.max_metric_drop)
        variants.append(
            Variant(
                name=name,
                bytes=model.bytes,
                sha256=model.sha256,
                **costs[name],
                perplexity=round(distance.perplexity, 4),
                mean_kl=distance.mean_kl,
                mean_kl_error=distance.mean_kl_error,
                same_top_token=round(distance.same_top_token, 4),
                metric=round(judged[name].interval.value, 4),
                metric_drop=round(0.0 - change.difference.value, 4),
                metric_drop_upper=round(0.0 - change.difference.lower, 4),
                rows_needed=change.rows_needed,
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
    return "; ".join([text, *(variant.refusal(limits) for variant in refused)])


def fall_back(ctx: StepContext) -> str:
    """Ship the unquantised variant, if it may, for a run that goes on after a failed choice."""
    if REFERENCE not in ctx.config.deployment.measured_variants:
        raise UserError(f"{REFERENCE} is not among deployment.variants")
    engine = engine_of(ctx)
    model = make_variants(ctx, engine, [REFERENCE])[REFERENCE]
    reason = f"{REFERENCE} ships: no variant was measured, since the step failed"
    ship(ctx, engine, REFERENCE, model, reason=reason)
    return f"the unquantised model ({REFERENCE}) goes on"


def plot_variants(variants: Sequence[Variant], chosen: str, limit: float, path: Path) -> None:
    """Draw what each variant costs in quality over its size; the chosen one is filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for one in variants:
        size = one.bytes / 2**20
        face = "#2c7a4b" if one.name == chosen else "white"
        upper = max(one.metric_drop_upper, one.metric_drop)
        axes.plot([size, size], [one.metric_drop, upper], color="#b0b8c0")
        axes.plot([size], [one.metric_drop], "o", color="#2c7a4b", markerfacecolor=face)
        label = f"{one.name}\n{one.tokens_per_s:.0f} tokens/s"
        axes.annotate(label, (size, one.metric_drop), (6, 6), textcoords="offset points")
    axes.axhline(limit, color="#c0392b", linestyle="--", linewidth=1)
    axes.set(xlabel="size, MiB", ylabel="loss of the task's metric against f16")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    save(figure, path)


def run(ctx: StepContext) -> Evidence:
    """Measure the variants on validation rows, choose one and store its bytes."""
    limits = ctx.config.deployment
    rows = validation_rows(ctx, limits.quality_rows or 2 * rows_for(limits.max_metric_drop))
    engine = engine_of(ctx)
    renderer = Renderer(load_tokenizer(MERGED.fetch(ctx)), ctx.config.data.target_format)
    texts = calibration_texts(dataset_rows(ctx), renderer)
    models = make_variants(ctx, engine, limits.measured_variants, texts)
    variants = measure_variants(ctx, engine, models, rows, renderer)
    table = [{**asdict(variant), "within_limits": variant.within(limits)} for variant in variants]
    ctx.write_json("variants.json", table)
    names = limits.measured_variants
    chosen = choose([v for v in variants if v.name in names], limits)
    plot = ctx.out / "variants.svg"
    plot_variants(variants, chosen.name if chosen else "", limits.max_metric_drop, plot)
    if chosen is None:
        return ctx.conclude(
            f"no variant of {', '.join(names)} is shown to stay within the limits ("
            f"{'; '.join(variant.refusal(limits) for variant in variants if variant.name in names)}"
            "); add f16 to deployment.variants",
            [measure("variants_within_limits", 0, "variants", ">=", 1)],
        )
    reason = _reason(chosen, variants, limits)
    ship(ctx, engine, chosen.name, models[chosen.name], reason=reason, judged_on=rows)
    return ctx.conclude(
        reason,
        [
            *judge(chosen, variants, limits),
            measure("measured_on_engine", engine.version(), ""),
            measure("measured_on", this_machine().text(), "hardware"),
            measure("chosen_sha256", chosen.sha256, "sha256"),
        ],
    )
