"""adapter_merging: prove that merging the adapter changed nothing, and decide how it is served.

transformers in float32 must give the same distribution for base plus adapter as for the merged
checkpoint (merged weights are rounded to float16, which bounds the difference). The engine that
ships must give the same answers for the merged model as for base plus adapter, token probabilities
included: a wrong LoRA scale shows at once, and an engine that skips the adapter on the rows that
the base answers otherwise. The engine's greedy answers must be those of transformers, and its
tokenizer and chat template must give the ids that training used, on every row. Its perplexity must
be that of transformers, and after QLoRA the merged model's close to the adapter's on its 4-bit
base.

Both ways of serving are driven with all slots taken. Several adapters on one base
(`deployment.multi_tenant`) stay apart where the engine can serve them so and the loss of throughput
is within `deployment.max_adapter_slowdown`; otherwise the adapter is merged. What is decided here
is what every later step measures and what ships; lineage compares.

No engine but TensorRT-LLM loads a DoRA adapter. The comparison in the engine is then reported as
not applicable; the distributions of the checkpoints and the answers of the merged model still
decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.artifacts.deployment import DECISION, REFERENCE, Decision
from tuneline.artifacts.training import ADAPTER, MERGED
from tuneline.asking.models import (
    engine_of,
    hashed,
    run_adapter,
    scoring_threads,
    server_of,
    unquantised,
    untuned,
)
from tuneline.asking.rows import dataset_rows, validation_rows
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.deployment.merging.checkpoints import LogitParity, compare_checkpoints, compare_losses
from tuneline.deployment.merging.served_forms import (
    FormSpeed,
    decide,
    form_measurements,
    measure_form,
    slowdown,
)
from tuneline.evidence import Evidence, Measurement, Rule, measure
from tuneline.models.base_model import load_tokenizer, read_json
from tuneline.serving.client import ChatResult, EngineClient
from tuneline.serving.engines.engine import Engine, ServedModel
from tuneline.serving.engines.limits import DORA_ENGINES
from tuneline.step_context import StepContext

# Rows that transformers answers in float32 (seconds each), and rows that the engine answers.
CHECKPOINT_ROWS, ENGINE_ROWS = 4, 8
MAX_TOKENS = 32
# Rounding merged weights to float16 costs about 1e-6 nats on a 135M model; a wrong scale, 0.1.
MAX_KL = 1e-3
# A near-tie of two tokens may fall either way when sums are rounded otherwise.
MIN_SAME_ANSWERS = 0.75
MAX_LOGPROB_CHANGE = 0.05


@dataclass(frozen=True)
class Served:
    """One way of serving: greedy answers, speed, and the ids of rows that it reads otherwise.

    `without` has the answers of the same server without its adapter; empty if it has none.
    """

    results: tuple[ChatResult, ...]
    without: tuple[ChatResult, ...]
    speed: FormSpeed
    tokenised: list[str]
    rendered: list[str]

    @property
    def texts(self) -> list[str]:
        """The texts of the answers."""
        return [result.text for result in self.results]


def logprob_change(first: Sequence[ChatResult], second: Sequence[ChatResult]) -> float:
    """Return the mean absolute change of token log-probabilities, in nats.

    Each pair of answers is compared up to the first token that differs. The result is infinite
    if no pair has its first token in common.
    """
    changes: list[float] = []
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a.logprobs, b.logprobs, strict=False):
            if x.token != y.token:
                break
            changes.append(abs(x.logprob - y.logprob))
    return sum(changes) / len(changes) if changes else float("inf")


def judge(
    checkpoints: LogitParity, merged: Served, apart: Served | None, why_not: str
) -> Iterator[Measurement]:
    """Compare merged with adapter, in transformers and, where it loads it, in the engine."""
    yield measure("checkpoint_mean_kl", checkpoints.mean_kl, "nats", "<=", MAX_KL)
    if apart is None:
        yield measure("adapter_in_engine", why_not, "")
    else:
        change = round(logprob_change(merged.results, apart.results), 5)
        yield _same_answers("engine_same_answers", merged.texts, apart.texts)
        yield measure("engine_logprob_change", change, "nats", "<=", MAX_LOGPROB_CHANGE)
    greedy = checkpoints.greedy
    yield _same_answers("engine_as_transformers", merged.texts[: len(greedy)], greedy)


def adapter_effect(
    merged: Sequence[str], apart: Served, multi_tenant: bool
) -> Iterator[Measurement]:
    """Judge if the engine applies the adapter, on the rows that the base alone answers otherwise.

    An engine may skip an adapter whose modules it does not find. Without such a row nothing shows
    it, which matters if the adapter is to ship apart.
    """
    texts = zip(merged, apart.texts, [result.text for result in apart.without], strict=True)
    telling = [(ours, theirs) for ours, theirs, base in texts if ours != base]
    rule: tuple[Rule, int] | tuple[None, None] = (">=", 1) if multi_tenant else (None, None)
    name = "rows_that_the_base_answers_otherwise"
    yield measure(name, len(telling), "rows", *rule, on_breach="inconclusive")
    if telling:
        yield _same_answers("adapter_answers_as_merged", *zip(*telling, strict=True))


def _same_answers(name: str, first: Sequence[str], second: Sequence[str]) -> Measurement:
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    return measure(name, round(same, 4), "share", ">=", MIN_SAME_ANSWERS)


def not_apart(engine: Engine, adapter: Path) -> str | None:
    """Return why the engine can't load an adapter beside the base; None if it can."""
    if not engine.serves_adapters:
        return f"not applicable: {engine.title} is started with merged models only"
    if read_json(adapter / "adapter_config.json").get("use_dora") and (
        engine.name not in DORA_ENGINES
    ):
        return f"not applicable: {engine.title} loads no DoRA adapter"
    return None


def reads_otherwise(apart: Served | None) -> str | None:
    """Return why the base can't be served with the adapter although the engine loads both.

    The base has its own tokenizer and chat template, which need not be those of training.
    """
    if apart is None or not (apart.tokenised or apart.rendered):
        return None
    return (
        f"not applicable: the base has another tokenizer or chat template than training used "
        f"({len(apart.tokenised)} rows and {len(apart.rendered)} prompts differ)"
    )


def serve_form(
    ctx: StepContext, model: ServedModel, renderer: Renderer, asked: Sequence[Row]
) -> Served:
    """Serve a model; ask it rows, compare how it reads them, and measure its speed."""
    deployment, rows = ctx.config.deployment, dataset_rows(ctx)
    texts = [renderer.text(row.messages) for row in rows]
    prompts = [renderer.text(row.prompt, ask=True) for row in asked]
    with server_of(model, deployment) as server:
        rendered = [
            row.row_id
            for row, prompt, ids in zip(asked, prompts, renderer.encode(prompts), strict=True)
            if not server.renders(row.prompt, prompt, ids)
        ]
        encoded = zip(rows, renderer.encode(texts), server.tokenize(texts), strict=True)
        tokenised = [row.row_id for row, ours, theirs in encoded if ours != theirs]
        results = _answers(server.client(), asked)
        without = _answers(server.client(base=True), asked) if model.adapter else ()
        measured = [row.prompt for row in validation_rows(ctx)]
        speed = measure_form(server, measured, deployment.parallel)
    return Served(results, without, speed, tokenised, rendered)


def _answers(client: EngineClient, asked: Sequence[Row]) -> tuple[ChatResult, ...]:
    with client:
        return tuple(client.chat(row.prompt, max_tokens=MAX_TOKENS, logprobs=True) for row in asked)


def cost_of_apart(
    multi_tenant: bool, limit: float, lost: tuple[float, float] | None
) -> Iterator[Measurement]:
    """State what the unmerged adapter costs, and judge it by the limit if it is to ship so."""
    if lost is not None:
        rule: tuple[Rule, float] | tuple[None, None] = (
            ("<=", limit) if multi_tenant else (None, None)
        )
        share, error = lost
        yield measure("adapter_slowdown", share, "share", *rule, noise=error, on_breach="warn")


def run(ctx: StepContext) -> Evidence:
    """Compare merged and adapter, in transformers and in the engine, and decide."""
    asked, settings = validation_rows(ctx, ENGINE_ROWS), ctx.config.deployment
    engine, base, threads = engine_of(ctx), base_of(ctx), scoring_threads()
    renderer = Renderer(load_tokenizer(MERGED.fetch(ctx)), ctx.config.data.target_format)
    ctx.log("comparing checkpoints in float32")
    checkpoints = compare_checkpoints(
        base.path,
        ADAPTER.fetch(ctx),
        MERGED.fetch(ctx),
        texts=[renderer.text(row.messages) for row in asked[:CHECKPOINT_ROWS]],
        prompts=[renderer.text(row.prompt, ask=True) for row in asked[:CHECKPOINT_ROWS]],
        max_tokens=MAX_TOKENS,
        threads=threads,
    )
    ctx.log("comparing merged and adapter in the engine")
    whole = unquantised(ctx)
    path = engine.make_variant(
        REFERENCE, whole.path, ctx.scratch / REFERENCE, texts=(), log=ctx.log
    )
    model = whole if path == whole.path else hashed(engine.name, path)
    merged = serve_form(ctx, model, renderer, asked)
    losses = compare_losses(ctx, engine, model, renderer, threads)
    why_not = not_apart(engine, ADAPTER.fetch(ctx))
    apart = lost = None
    if why_not is None:
        beside = untuned(ctx, base).beside(run_adapter(ctx, engine))
        apart = serve_form(ctx, beside, renderer, asked)
        lost = slowdown(merged.speed, apart.speed)
    obstacle = why_not or reads_otherwise(apart)
    limit = settings.max_adapter_slowdown
    decision, reason = decide(settings.multi_tenant, obstacle, lost and lost[0], limit)
    DECISION.write(
        ctx, _document(decision, reason, merged, apart, asked=asked, checkpoints=checkpoints)
    )
    wanted = "apart" if settings.multi_tenant else "merge"
    compared = len(dataset_rows(ctx))
    measurements = [
        *judge(checkpoints, merged, None if obstacle else apart, obstacle or ""),
        *(adapter_effect(merged.texts, apart, settings.multi_tenant) if apart else ()),
        *losses.measurements,
        measure("rows_tokenised_otherwise", len(merged.tokenised), "rows", "<=", 0),
        measure("prompts_rendered_otherwise", len(merged.rendered), "rows", "<=", 0),
        measure("rows_compared", compared, "rows"),
        measure("decision", decision, "decision"),
        measure("decided_as_asked", decision == wanted, "flag", "==", True, on_breach="warn"),
        *form_measurements("merged", merged.speed),
        *form_measurements("apart", apart.speed if apart else None),
        *cost_of_apart(settings.multi_tenant, limit, lost),
    ]
    values = {m.name: m.value for m in measurements}
    in_engine = (
        f"{values['engine_same_answers']:.0%} of the answers are the same in the engine"
        if obstacle is None
        else f"merged against adapter in the engine: {obstacle}"
    )
    return ctx.conclude(
        f"{decision}: {reason} ({_speeds(merged, apart, settings.parallel)}); "
        f"KL {checkpoints.mean_kl:.1e} nats; {in_engine}; "
        f"{values['engine_as_transformers']:.0%} equal those of transformers; "
        f"{losses.sentence}; {len(merged.tokenised)} of {compared} rows have other token ids",
        measurements,
    )


def _document(
    decision: str,
    reason: str,
    merged: Served,
    apart: Served | None,
    *,
    asked: Sequence[Row],
    checkpoints: LogitParity,
) -> Decision:
    answers = zip(asked, merged.texts, apart.texts if apart else [None] * len(asked), strict=True)
    document = {
        "decision": decision,
        "reason": reason,
        "answers": [{"row_id": row.row_id, "merged": a, "apart": b} for row, a, b in answers],
        "transformers": list(checkpoints.greedy),
        "rows_tokenised_otherwise": merged.tokenised,
        "prompts_rendered_otherwise": merged.rendered,
    }
    return Decision.model_validate(document)


def _speeds(merged: Served, apart: Served | None, parallel: int) -> str:
    text = f"{merged.speed.tokens_per_s:.0f} tokens/s merged"
    if apart is None:
        return f"{text}, apart not measurable"
    return f"{text}, {apart.speed.tokens_per_s:.0f} with the adapter apart at {parallel} at once"
