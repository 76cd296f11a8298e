"""adapter_merging: prove that merging the adapter changed nothing, and decide how it is served.

transformers in float32 must give the same distribution for base plus adapter as for the merged
checkpoint (merged weights are rounded to float16, which bounds the difference). The engine must
give the same answers for the merged file as for base plus adapter, token probabilities included:
a wrong LoRA scale shows at once. The engine's greedy answers must be those of transformers, and
its tokenizer and chat template must give the ids that training used, on every row. Both ways of
serving are timed.

llama.cpp loads no DoRA adapter. The comparison in the engine is then reported as not applicable;
the distributions of the checkpoints and the answers of the merged file still decide.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import ADAPTER, ADAPTER_GGUF, CANDIDATE_GGUF, MERGED
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.deployment.merging.checkpoint_parity import LogitParity, compare_checkpoints
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.rows import dataset_rows, validation_rows
from tuneline.harness.served_models import base_gguf, scoring_threads, serve
from tuneline.models.base_model import BaseModel, read_json
from tuneline.models.resolver import load_tokenizer
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import ChatResult
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.engines.llama_cpp.perplexity import tokenize_texts

# Rows that transformers answers in float32 (seconds each), and rows that the engine answers.
CHECKPOINT_ROWS, ENGINE_ROWS = 4, 8
MAX_TOKENS = 32
# Rounding merged weights to float16 costs about 1e-6 nats on a 135M model; a wrong scale, 0.1.
MAX_KL = 1e-3
# A near-tie of two tokens may fall either way when sums are rounded otherwise.
MIN_SAME_ANSWERS = 0.75
MAX_LOGPROB_CHANGE = 0.05
# Adapters are off unless a request turns them on; see the server's scale-0 rule.
ADAPTER_ON: Mapping[str, Any] = {"lora": [{"id": 0, "scale": 1.0}]}
NO_DORA = "not applicable: llama.cpp loads no DoRA adapter"


@dataclass(frozen=True)
class Served:
    """Greedy answers of one way of serving, and its speed."""

    results: tuple[ChatResult, ...]
    tokens_per_s: float

    @property
    def texts(self) -> list[str]:
        """The texts of the answers."""
        return [result.text for result in self.results]


def same_share(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of equal answers."""
    pairs = list(zip(first, second, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


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


def ask_server(
    server: LlamaServer, rows: Sequence[Row], extra: Mapping[str, Any] | None = None
) -> Served:
    """Have the server answer rows in turn, greedily, with token log-probabilities."""
    with server.client() as client:
        start = time.perf_counter()
        results = tuple(
            client.chat(row.prompt, max_tokens=MAX_TOKENS, logprobs=True, extra=extra)
            for row in rows
        )
        seconds = time.perf_counter() - start
    return Served(results, sum(r.usage.completion_tokens for r in results) / seconds)


def differing_rows(renderer: Renderer, rows: Sequence[Row], gguf: Path) -> list[str]:
    """Return the ids of rows to which the engine's tokenizer gives other token ids."""
    texts = [renderer.text(row.messages) for row in rows]
    theirs = tokenize_texts(gguf, texts)
    ours = renderer.encode(texts)
    return [row.row_id for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]


def differing_prompts(renderer: Renderer, rows: Sequence[Row], server: LlamaServer) -> list[str]:
    """Return the ids of rows whose prompt the engine's chat template renders differently."""
    import httpx

    found = []
    for row in rows:
        answer = httpx.post(
            f"{server.base_url}/apply-template",
            json={"messages": row.prompt},
            timeout=60.0,
            trust_env=False,
        )
        answer.raise_for_status()
        if answer.json()["prompt"] != renderer.text(row.prompt, ask=True):
            found.append(row.row_id)
    return found


def decide(multi_tenant: bool, merged: float, apart: float | None) -> tuple[str, str]:
    """Return the decision and its reason.

    Args:
        multi_tenant: whether several adapters share one base.
        merged: speed of the merged model, in tokens/s.
        apart: speed of base plus adapter, in tokens/s; None if llama.cpp can't load it.
    """
    beside = f"{apart:.0f} with the adapter apart" if apart is not None else "apart not measurable"
    speeds = f"{merged:.0f} tokens/s merged, {beside}"
    if multi_tenant:
        return "apart", f"several adapters share one base, so they stay apart ({speeds})"
    return "merge", f"one adapter and one model: the merged file leaves nothing to apply ({speeds})"


def judge(checkpoints: LogitParity, merged: Served, apart: Served | None) -> Iterator[Measurement]:
    """Compare merged with adapter, in transformers and, where it loads it, in the engine."""
    yield measure("checkpoint_mean_kl", checkpoints.mean_kl, "nats", "<=", MAX_KL)
    yield measure("checkpoint_max_logit_change", checkpoints.max_change, "logits")
    yield measure("checkpoint_same_top_token", checkpoints.same_top_token, "share")
    if apart is None:
        yield measure("adapter_in_engine", NO_DORA, "")
    else:
        change = round(logprob_change(merged.results, apart.results), 5)
        yield _same_answers("engine_same_answers", merged.texts, apart.texts)
        yield measure("engine_logprob_change", change, "nats", "<=", MAX_LOGPROB_CHANGE)
    greedy = checkpoints.greedy
    yield _same_answers("engine_as_transformers", merged.texts[: len(greedy)], greedy)


def _same_answers(name: str, first: Sequence[str], second: Sequence[str]) -> Measurement:
    return measure(name, round(same_share(first, second), 4), "share", ">=", MIN_SAME_ANSWERS)


def in_transformers(
    ctx: StepContext, base: BaseModel, renderer: Renderer, rows: Sequence[Row], threads: int
) -> LogitParity:
    """Compare the checkpoints in float32, on the first of the rows."""
    ctx.log("comparing checkpoints in float32")
    return compare_checkpoints(
        base.path,
        ADAPTER.fetch(ctx),
        MERGED.fetch(ctx),
        texts=[renderer.text(row.messages) for row in rows[:CHECKPOINT_ROWS]],
        prompts=[renderer.text(row.prompt, ask=True) for row in rows[:CHECKPOINT_ROWS]],
        max_tokens=MAX_TOKENS,
        threads=threads,
    )


def with_adapter(
    ctx: StepContext, base: BaseModel, rows: Sequence[Row], threads: int
) -> Served | None:
    """Return the answers of base plus adapter in the engine; None for a DoRA adapter."""
    if read_json(ADAPTER.fetch(ctx) / "adapter_config.json").get("use_dora"):
        ctx.log(f"base plus adapter in the engine: {NO_DORA}")
        return None
    loras, file = [ADAPTER_GGUF.fetch(ctx)], base_gguf(ctx, base).path
    with serve(file, ctx.config, loras=loras, threads=threads, parallel=1) as server:
        return ask_server(server, rows, ADAPTER_ON)


def run(ctx: StepContext) -> Evidence:
    """Compare merged and adapter, in transformers and in the engine, and decide."""
    rows, asked = dataset_rows(ctx), validation_rows(ctx, ENGINE_ROWS)
    candidate, base, threads = (
        CANDIDATE_GGUF.fetch(ctx),
        base_of(ctx),
        scoring_threads(),
    )
    renderer = Renderer(load_tokenizer(MERGED.fetch(ctx)), ctx.config.data.target_format)
    checkpoints = in_transformers(ctx, base, renderer, asked, threads)
    ctx.log("comparing merged and adapter in the engine")
    with serve(candidate, ctx.config, threads=threads, parallel=1) as server:
        rendered = differing_prompts(renderer, asked, server)
        merged = ask_server(server, asked)
    apart = with_adapter(ctx, base, asked, threads)
    tokenised = differing_rows(renderer, rows, candidate)
    apart_speed = apart.tokens_per_s if apart else None
    decision, reason = decide(ctx.config.deployment.multi_tenant, merged.tokens_per_s, apart_speed)
    answers = zip(asked, merged.texts, apart.texts if apart else [None] * len(asked), strict=True)
    document = {
        "decision": decision,
        "reason": reason,
        "answers": [{"row_id": row.row_id, "merged": a, "apart": b} for row, a, b in answers],
        "transformers": list(checkpoints.greedy),
        "rows_tokenised_otherwise": tokenised,
        "prompts_rendered_otherwise": rendered,
    }
    ctx.write_json("decision.json", document)
    measurements = [
        *judge(checkpoints, merged, apart),
        measure("rows_tokenised_otherwise", len(tokenised), "rows", "<=", 0),
        measure("prompts_rendered_otherwise", len(rendered), "rows", "<=", 0),
        measure("rows_compared", len(rows), "rows"),
        measure("decision", decision, "decision"),
        # This pipeline ships the merged file; a base with adapters is set up by hand.
        measure("ships_as_decided", decision == "merge", "flag", "==", True, on_breach="warn"),
        measure("merged_tokens_per_s", round(merged.tokens_per_s, 1), "tokens/s"),
        measure(
            "apart_tokens_per_s",
            None if apart is None else round(apart.tokens_per_s, 1),
            "tokens/s",
        ),
    ]
    values = {m.name: m.value for m in measurements}
    in_engine = (
        f"{values['engine_same_answers']:.0%} of the answers are the same in the engine"
        if apart
        else f"merged against adapter in the engine: {NO_DORA}"
    )
    return ctx.conclude(
        f"{decision}: {reason}; KL {checkpoints.mean_kl:.1e} nats; {in_engine}; "
        f"{values['engine_as_transformers']:.0%} equal those of transformers; "
        f"{len(tokenised)} of {len(rows)} rows have other token ids",
        measurements,
    )
