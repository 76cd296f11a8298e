"""adapter_merging: prove that merging the adapter changed nothing, and decide how it is served.

transformers in float32 must give the same distribution for base plus adapter as for the merged
checkpoint (merged weights are rounded to float16, which bounds the difference). The engine that
ships must give the same answers for the merged model as for base plus adapter, token probabilities
included: a wrong LoRA scale shows at once, and an engine that skips the adapter on the rows that
the base answers otherwise. The engine's greedy answers must be those of transformers, as far as
few rows show it, and its tokenizer and chat template must give the ids that training used, on every
row. Its perplexity must be that of transformers, and after QLoRA the merged model's close to the
adapter's on its 4-bit base.

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
from itertools import cycle, islice
from pathlib import Path
from statistics import median, stdev

from tuneline.artifacts.deployment import DECISION, REFERENCE, Decision
from tuneline.artifacts.training import ADAPTER, MERGED
from tuneline.asking.load import Timing, drive
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
from tuneline.evidence import Breach, Evidence, Measurement, Rule, measure
from tuneline.models.base_model import load_tokenizer, read_json
from tuneline.serving.client import ChatResult, EngineClient, Messages
from tuneline.serving.engines.engine import Engine, ServedModel
from tuneline.serving.engines.limits import DORA_ENGINES
from tuneline.serving.engines.server import EngineServer
from tuneline.statistics import share_of
from tuneline.step_context import StepContext

# Rows that transformers answers in float32 (seconds each), and rows that the engine answers.
CHECKPOINT_ROWS, ENGINE_ROWS = 4, 8
MAX_TOKENS = 32
# Rounding merged weights to float16 costs about 1e-6 nats on a 135M model; a wrong scale, 0.1.
MAX_KL = 1e-3
# A near-tie of two tokens may fall either way when sums are rounded otherwise; see `same_answers`.
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


def logprob_change(merged: Served, apart: Served) -> Measurement:
    """Judge the mean absolute change of token log-probabilities, in nats.

    Each pair of answers is compared up to the first token that differs. The result is infinite
    if no pair has its first token in common.
    """
    changes: list[float] = []
    for a, b in zip(merged.results, apart.results, strict=True):
        for x, y in zip(a.logprobs, b.logprobs, strict=False):
            if x.token != y.token:
                break
            changes.append(abs(x.logprob - y.logprob))
    change = round(sum(changes) / len(changes), 5) if changes else float("inf")
    return measure("engine_logprob_change", change, "nats", "<=", MAX_LOGPROB_CHANGE)


def judge(
    parity: LogitParity, rounding: Measurement, merged: Served, apart: Served | None, why_not: str
) -> Iterator[Measurement]:
    """Compare merged with adapter, in transformers and, where it loads it, in the engine.

    Args:
        rounding: the engine's distance from transformers by the probabilities of given tokens.
    """
    yield measure("checkpoint_mean_kl", parity.mean_kl, "nats", "<=", MAX_KL)
    if apart is None:
        yield measure("adapter_in_engine", why_not, "")
    else:
        change = logprob_change(merged, apart)
        yield same_answers("engine_same_answers", merged.texts, apart.texts, change)
        yield change
    ours = merged.texts[: len(parity.greedy)]
    yield same_answers("engine_as_transformers", ours, parity.greedy, rounding)


def adapter_effect(merged: Served, apart: Served, multi_tenant: bool) -> Iterator[Measurement]:
    """Judge if the engine applies the adapter, on the rows that the base alone answers otherwise.

    An engine may skip an adapter whose modules it does not find. Without such a row nothing shows
    it, which matters if the adapter is to ship apart.
    """
    texts = zip(merged.texts, apart.texts, (said.text for said in apart.without), strict=True)
    telling = [(ours, theirs) for ours, theirs, base in texts if ours != base]
    rule: tuple[Rule, int] | tuple[None, None] = (">=", 1) if multi_tenant else (None, None)
    name = "rows_that_the_base_answers_otherwise"
    yield measure(name, len(telling), "rows", *rule, on_breach="inconclusive")
    if telling:
        ours, theirs = zip(*telling, strict=True)
        yield same_answers("adapter_answers_as_merged", ours, theirs, logprob_change(merged, apart))


def same_answers(
    name: str, first: Sequence[str], second: Sequence[str], witness: Measurement
) -> Measurement:
    """Judge the share of equal greedy answers, with a witness that compares probabilities.

    Near-ties of tokens make answers of a faithful engine differ, and the rows are few. So a share
    below the limit fails if its exact interval is below too and the witness fails, or no answer at
    all is equal. It only warns if the interval reaches the limit and the witness holds. What is
    left is inconclusive.
    """
    same = share_of(sum(a == b for a, b in zip(first, second, strict=True)), len(first))
    shown = same.upper < MIN_SAME_ANSWERS
    against = not witness.ok and witness.on_breach == "fail"
    breach: Breach = "warn" if witness.ok and not shown else "inconclusive"
    breach = "fail" if shown and (against or not same.value) else breach
    return measure(name, round(same.value, 4), "share", ">=", MIN_SAME_ANSWERS, on_breach=breach)


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
    rounding = next(m for m in losses.measurements if m.name == "engine_rounding_ratio")
    why_not = not_apart(engine, ADAPTER.fetch(ctx))
    apart = lost = None
    if why_not is None:
        beside = untuned(ctx, base).beside(run_adapter(ctx, engine))
        apart = serve_form(ctx, beside, renderer, asked)
        lost = slowdown(merged.speed, apart.speed)
    obstacle = why_not or reads_otherwise(apart)
    limit = settings.max_adapter_slowdown
    decision, reason = decide(settings.multi_tenant, obstacle, lost and lost[0], limit)
    answers = zip(asked, merged.texts, apart.texts if apart else [None] * len(asked), strict=True)
    document = {
        "decision": decision,
        "reason": reason,
        "answers": [{"row_id": row.row_id, "merged": a, "apart": b} for row, a, b in answers],
        "transformers": list(checkpoints.greedy),
        "rows_tokenised_otherwise": merged.tokenised,
        "prompts_rendered_otherwise": merged.rendered,
    }
    DECISION.write(ctx, Decision.model_validate(document))
    wanted = "apart" if settings.multi_tenant else "merge"
    compared = len(dataset_rows(ctx))
    measurements = [
        *judge(checkpoints, rounding, merged, None if obstacle else apart, obstacle or ""),
        *(adapter_effect(merged, apart, settings.multi_tenant) if apart else ()),
        *losses.measurements,
        measure("rows_tokenised_otherwise", len(merged.tokenised), "rows", "<=", 0),
        measure("prompts_rendered_otherwise", len(merged.rendered), "rows", "<=", 0),
        measure("rows_compared", compared, "rows"),
        measure("decision", decision, "decision"),
        measure("decided_as_asked", decision == wanted, "flag", "==", True, on_breach="warn"),
        *form_measurements("merged", merged.speed),
        *form_measurements("apart", apart.speed if apart else None),
    ]
    if lost is not None:
        # The limit is for an adapter that is to ship apart.
        bound: tuple[Rule, float] | tuple[()] = ("<=", limit) if settings.multi_tenant else ()
        ruled = (lost[0], "share", *bound)
        measurements.append(measure("adapter_slowdown", *ruled, noise=lost[1], on_breach="warn"))
    values = {m.name: m.value for m in measurements}
    speeds = f"{merged.speed.tokens_per_s:.0f} tokens/s merged, "
    speeds += f"{apart.speed.tokens_per_s:.0f} with the adapter apart" if apart else "apart not "
    speeds += f" at {settings.parallel} at once" if apart else "measurable"
    in_engine = (
        f"{values['engine_same_answers']:.0%} of the answers are the same in the engine"
        if obstacle is None
        else f"merged against adapter in the engine: {obstacle}"
    )
    return ctx.conclude(
        f"{decision}: {reason} ({speeds}); "
        f"KL {checkpoints.mean_kl:.1e} nats; {in_engine}; "
        f"{values['engine_as_transformers']:.0%} equal those of transformers; "
        f"{losses.sentence}; {len(merged.tokenised)} of {compared} rows have other token ids",
        measurements,
    )


# Tokens of every answer: enough for a steady speed; on two cores both forms take some seconds.
SPEED_TOKENS = 24
# Load changes from second to second; the median of three rounds forgets one bad round.
ROUNDS = 3
# A round has two requests for each that runs at once, and at least this many.
MIN_REQUESTS = 4


@dataclass(frozen=True)
class FormSpeed:
    """A way of serving with all slots taken: tokens/s with their error, failures, memory."""

    tokens_per_s: float
    error: float
    failed: int
    memory_bytes: int


def measure_form(server: EngineServer, prompts: Sequence[Messages], parallel: int) -> FormSpeed:
    """Drive a server with all slots taken."""
    following, timings, speeds = cycle(prompts), list[Timing](), list[float]()
    with server.client() as client:
        drive(client, prompts[:1], 1, 1)
        for _ in range(ROUNDS):
            batch = list(islice(following, max(MIN_REQUESTS, 2 * parallel)))
            found, seconds = drive(client, batch, parallel, SPEED_TOKENS)
            timings += found
            speeds.append(sum(t.output_tokens for t in found if t.ok) / seconds)
    failed = sum(not timing.ok for timing in timings)
    error = round(stdev(speeds) / ROUNDS**0.5, 3)
    return FormSpeed(round(median(speeds), 2), error, failed, server.memory_bytes())


def slowdown(merged: FormSpeed, apart: FormSpeed) -> tuple[float, float] | None:
    """Return the share of throughput that the unmerged adapter costs, and its standard error.

    None if the merged model generated nothing.
    """
    if not merged.tokens_per_s:
        return None
    ratio = apart.tokens_per_s / merged.tokens_per_s
    # First-order propagation of the errors of a quotient.
    error = (
        (apart.error / merged.tokens_per_s) ** 2 + (ratio * merged.error / merged.tokens_per_s) ** 2
    ) ** 0.5
    return round(1.0 - ratio, 4), round(error, 4)


def decide(
    multi_tenant: bool, obstacle: str | None, lost: float | None, limit: float
) -> tuple[str, str]:
    """Return the decision, `merge` or `apart`, and its reason.

    Args:
        obstacle: why the engine can't serve the adapter next to the base; None if it can.
        lost: the throughput that the adapter costs; None if it could not be measured.
    """
    if not multi_tenant:
        return "merge", "one adapter and one model: merged, nothing is left to apply"
    if obstacle is None and lost is None:
        obstacle = "no throughput could be measured"
    if obstacle is None and lost is not None and lost > limit:
        obstacle = (
            f"on top of it this one costs {lost:.0%} of the throughput, more than "
            f"max_adapter_slowdown ({limit:.0%}) allows"
        )
    if obstacle is not None or lost is None:
        return "merge", f"several adapters were to share one base, but {obstacle}"
    return (
        "apart",
        f"several adapters share one base: on top of it this one costs {lost:.0%} of the "
        f"throughput, at most {limit:.0%} are allowed",
    )


def form_measurements(name: str, speed: FormSpeed | None) -> Iterator[Measurement]:
    """State the numbers of one way of serving; None if the engine can't serve it that way."""
    if speed is None:
        yield measure(f"{name}_tokens_per_s", None, "tokens/s")
        return
    yield measure(f"{name}_tokens_per_s", speed.tokens_per_s, "tokens/s", noise=speed.error)
    yield measure(f"{name}_memory", speed.memory_bytes, "bytes")
    yield measure(f"{name}_failed_requests", speed.failed, "requests", "==", 0)
