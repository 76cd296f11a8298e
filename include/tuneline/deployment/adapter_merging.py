"""Merge the adapter, or keep it apart: parity and speed of both, and the decision.

Proves that merging changed nothing: transformers in float32 gives the same
distribution for base plus adapter as for the merged checkpoint (merged weights
are rounded to float16, which bounds the difference); the engine gives the same
answers for the merged file as for base plus adapter, token probabilities
included, which shows a wrong LoRA scale at once; the engine's greedy answers
are those of transformers; and the engine's tokenizer and chat template give the
ids that training used, on every row. Both ways of serving are timed.

llama.cpp loads no DoRA adapter, so there the engine's side of the comparison is said to be
not applicable: the checkpoints' distributions and the merged file's answers still decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.deployment.merging.checkpoint_parity import LogitParity, compare_checkpoints
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.rows import dataset_rows, validation_rows
from tuneline.harness.served_models import (
    base_gguf,
    base_model,
    scoring_threads,
    serve,
)
from tuneline.models.resolver import load_tokenizer
from tuneline.run import StepContext
from tuneline.serving.client.chat_protocol import ChatResult
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.engines.llama_cpp.perplexity import tokenize_texts

# Rows for transformers in float32 (seconds each) and for the engine.
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
    """Greedy answers of one way of serving, with its speed."""

    results: tuple[ChatResult, ...]
    tokens_per_s: float

    @property
    def texts(self) -> list[str]:
        """The answers."""
        return [result.text for result in self.results]


def same_share(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of equal answers."""
    pairs = list(zip(first, second, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def logprob_change(first: Sequence[ChatResult], second: Sequence[ChatResult]) -> float:
    """Mean absolute change of token log-probabilities up to where two answers part, in nats.

    Infinite when no answer has a first token in common.
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
    """Answer rows one after the other, greedily, with token log-probabilities."""
    with server.client() as client:
        start = time.perf_counter()
        results = tuple(
            client.chat(row.prompt, max_tokens=MAX_TOKENS, logprobs=True, extra=extra)
            for row in rows
        )
        seconds = time.perf_counter() - start
    return Served(results, sum(r.usage.completion_tokens for r in results) / seconds)


def differing_rows(renderer: Renderer, rows: Sequence[Row], gguf: Path) -> list[str]:
    """Ids of rows that the engine's tokenizer reads otherwise than the training's."""
    texts = [renderer.text(row.messages) for row in rows]
    theirs = tokenize_texts(gguf, texts)
    ours = renderer.encode(texts)
    return [row.row_id for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]


def differing_prompts(renderer: Renderer, rows: Sequence[Row], server: LlamaServer) -> list[str]:
    """Ids of rows whose prompt the engine's chat template renders otherwise."""
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
    """The decision and its reason.

    Args:
        multi_tenant: whether several adapters share one base.
        merged: tokens/s of the merged model.
        apart: tokens/s of base plus adapter; None where llama.cpp can't load it.
    """
    beside = f"{apart:.0f} with the adapter apart" if apart is not None else "apart not measurable"
    speeds = f"{merged:.0f} tokens/s merged, {beside}"
    if multi_tenant:
        return "apart", f"several adapters share one base, so they stay apart ({speeds})"
    return "merge", f"one adapter, one model: merged there is nothing to apply ({speeds})"


def judge(
    checkpoints: LogitParity, merged: Served, apart: Served | None, transformers: Sequence[str]
) -> list[Measurement]:
    """Parity of merged against adapter, in transformers and, where it loads it, in the engine."""
    with_reference = merged.texts[: len(transformers)]
    return [
        measure("checkpoint_mean_kl", checkpoints.mean_kl, "nats", "<=", MAX_KL),
        measure("checkpoint_max_logit_change", checkpoints.max_change, "logits"),
        measure("checkpoint_same_top_token", checkpoints.same_top_token, "share"),
        *_in_engine(merged, apart),
        measure(
            "engine_as_transformers",
            round(same_share(with_reference, transformers), 4),
            "share",
            ">=",
            MIN_SAME_ANSWERS,
        ),
    ]


def _in_engine(merged: Served, apart: Served | None) -> list[Measurement]:
    """The merged file against base plus adapter, both in the engine."""
    if apart is None:
        return [measure("adapter_in_engine", NO_DORA, "")]
    return [
        measure(
            "engine_same_answers",
            round(same_share(merged.texts, apart.texts), 4),
            "share",
            ">=",
            MIN_SAME_ANSWERS,
        ),
        measure(
            "engine_logprob_change",
            round(logprob_change(merged.results, apart.results), 5),
            "nats",
            "<=",
            MAX_LOGPROB_CHANGE,
        ),
    ]


def run(ctx: StepContext) -> Evidence:
    """Compare merged and adapter, in transformers and in the engine, and decide."""
    rows = dataset_rows(ctx)
    asked = validation_rows(ctx, ENGINE_ROWS)
    merged_dir = ctx.input_dir("export_candidate", "merged")
    adapter_dir = ctx.input_dir("train", "adapter")
    candidate = ctx.input("export_candidate", "candidate.gguf")
    base = base_model(ctx)
    renderer = Renderer(load_tokenizer(merged_dir), ctx.config.data.target_format)

    threads = scoring_threads()
    ctx.log("comparing checkpoints in float32")
    prompts = [renderer.text(row.prompt, ask=True) for row in asked[:CHECKPOINT_ROWS]]
    checkpoints = compare_checkpoints(
        base.path,
        adapter_dir,
        merged_dir,
        texts=[renderer.text(row.messages) for row in asked[:CHECKPOINT_ROWS]],
        prompts=prompts,
        max_tokens=MAX_TOKENS,
        threads=threads,
    )
    ctx.log("comparing merged and adapter in the engine")
    with serve(candidate, ctx.config, threads=threads, parallel=1) as server:
        prompts_differ = differing_prompts(renderer, asked, server)
        merged = ask_server(server, asked)
    apart = None
    if json.loads((adapter_dir / "adapter_config.json").read_text()).get("use_dora"):
        ctx.log(f"base plus adapter in the engine: {NO_DORA}")
    else:
        loras = [ctx.input("export_candidate", "adapter.gguf")]
        file = base_gguf(ctx, base).path
        with serve(file, ctx.config, loras=loras, threads=threads, parallel=1) as server:
            apart = ask_server(server, asked, ADAPTER_ON)
    tokens_differ = differing_rows(renderer, rows, candidate)

    decision, reason = decide(
        ctx.config.deployment.multi_tenant,
        merged.tokens_per_s,
        apart.tokens_per_s if apart else None,
    )
    answers_apart = apart.texts if apart else [None] * len(asked)
    document = {
        "decision": decision,
        "reason": reason,
        "answers": [
            {"row_id": row.row_id, "merged": a, "apart": b}
            for row, a, b in zip(asked, merged.texts, answers_apart, strict=True)
        ],
        "transformers": list(checkpoints.greedy),
        "rows_tokenised_otherwise": tokens_differ,
        "prompts_rendered_otherwise": prompts_differ,
    }
    (ctx.out / "decision.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
    measurements = [
        *judge(checkpoints, merged, apart, checkpoints.greedy),
        measure("rows_tokenised_otherwise", len(tokens_differ), "rows", "<=", 0),
        measure("prompts_rendered_otherwise", len(prompts_differ), "rows", "<=", 0),
        measure("rows_compared", len(rows), "rows"),
        measure("decision", decision, "decision"),
        # This pipeline ships the merged file; a base with adapters is set up by hand.
        measure("ships_as_decided", decision == "merge", "flag", "==", True, on_breach="warn"),
        measure("merged_tokens_per_s", round(merged.tokens_per_s, 1), "tokens/s"),
        measure("apart_tokens_per_s", round(apart.tokens_per_s, 1) if apart else None, "tokens/s"),
    ]
    found = {m.name: m.value for m in measurements}
    same = (
        f"same answers {found['engine_same_answers']:.0%}"
        if apart
        else f"merged against adapter in the engine: {NO_DORA}"
    )
    summary = (
        f"{decision}: {reason}; KL {checkpoints.mean_kl:.1e} nats, {same}, as transformers "
        f"{found['engine_as_transformers']:.0%}, {len(tokens_differ)} of {len(rows)} rows "
        "tokenised otherwise"
    )
    return ctx.conclude(summary, measurements)
