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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import ADAPTER, ADAPTER_GGUF, CANDIDATE_GGUF, MERGED
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.deployment.merging.checkpoint_parity import LogitParity, compare_checkpoints
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.rows import dataset_rows, validation_rows
from tuneline.harness.served_models import base_gguf, base_model, scoring_threads, serve
from tuneline.models.base_model import read_json
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


def judge(
    checkpoints: LogitParity, merged: Served, apart: Served | None, transformers: Sequence[str]
) -> list[Measurement]:
    """Compare merged with adapter, in transformers and, where it loads it, in the engine."""
    as_transformers = same_share(merged.texts[: len(transformers)], transformers)
    return [
        measure("checkpoint_mean_kl", checkpoints.mean_kl, "nats", "<=", MAX_KL),
        measure("checkpoint_max_logit_change", checkpoints.max_change, "logits"),
        measure("checkpoint_same_top_token", checkpoints.same_top_token, "share"),
        *_in_engine(merged, apart),
        _same_answers("engine_as_transformers", as_transformers),
    ]


def _in_engine(merged: Served, apart: Served | None) -> list[Measurement]:
    """Compare the merged file with base plus adapter, both in the engine."""
    if apart is None:
        return [measure("adapter_in_engine", NO_DORA, "")]
    change = round(logprob_change(merged.results, apart.results), 5)
    return [
        _same_answers("engine_same_answers", same_share(merged.texts, apart.texts)),
        measure("engine_logprob_change", change, "nats", "<=", MAX_LOGPROB_CHANGE),
    ]


def _same_answers(name: str, share: float) -> Measurement:
    return measure(name, round(share, 4), "share", ">=", MIN_SAME_ANSWERS)


@dataclass(frozen=True)
class Findings:
    """Everything that was measured of the merged model and of base plus adapter.

    Attributes:
        asked: the rows that the engine answered.
        checkpoints: the checkpoints' distributions, compared in transformers.
        merged: answers of the merged file in the engine.
        apart: answers of base plus adapter in the engine; None for a DoRA adapter.
        tokenised_otherwise: ids of rows with other token ids in the engine.
        rendered_otherwise: ids of rows whose prompt the engine renders differently.
        rows: number of rows whose token ids were compared.
    """

    asked: Sequence[Row]
    checkpoints: LogitParity
    merged: Served
    apart: Served | None
    tokenised_otherwise: Sequence[str]
    rendered_otherwise: Sequence[str]
    rows: int


def compare(ctx: StepContext, rows: Sequence[Row], asked: Sequence[Row]) -> Findings:
    """Compare merged and adapter, in transformers and in the engine.

    Args:
        ctx: the step.
        rows: rows whose token ids are compared.
        asked: rows that are answered; transformers answers the first of them.
    """
    merged_dir, adapter_dir = MERGED.fetch(ctx), ADAPTER.fetch(ctx)
    candidate = CANDIDATE_GGUF.fetch(ctx)
    base = base_model(ctx)
    renderer = Renderer(load_tokenizer(merged_dir), ctx.config.data.target_format)
    threads = scoring_threads()
    ctx.log("comparing checkpoints in float32")
    checkpoints = compare_checkpoints(
        base.path,
        adapter_dir,
        merged_dir,
        texts=[renderer.text(row.messages) for row in asked[:CHECKPOINT_ROWS]],
        prompts=[renderer.text(row.prompt, ask=True) for row in asked[:CHECKPOINT_ROWS]],
        max_tokens=MAX_TOKENS,
        threads=threads,
    )
    ctx.log("comparing merged and adapter in the engine")
    with serve(candidate, ctx.config, threads=threads, parallel=1) as server:
        rendered_otherwise = differing_prompts(renderer, asked, server)
        merged = ask_server(server, asked)
    apart = None
    if read_json(adapter_dir / "adapter_config.json").get("use_dora"):
        ctx.log(f"base plus adapter in the engine: {NO_DORA}")
    else:
        loras, file = [ADAPTER_GGUF.fetch(ctx)], base_gguf(ctx, base).path
        with serve(file, ctx.config, loras=loras, threads=threads, parallel=1) as server:
            apart = ask_server(server, asked, ADAPTER_ON)
    return Findings(
        asked,
        checkpoints,
        merged,
        apart,
        differing_rows(renderer, rows, candidate),
        rendered_otherwise,
        len(rows),
    )


def decision_document(found: Findings, decision: str, reason: str) -> dict[str, Any]:
    """Return the content of `decision.json`."""
    apart = found.apart.texts if found.apart else [None] * len(found.asked)
    return {
        "decision": decision,
        "reason": reason,
        "answers": [
            {"row_id": row.row_id, "merged": a, "apart": b}
            for row, a, b in zip(found.asked, found.merged.texts, apart, strict=True)
        ],
        "transformers": list(found.checkpoints.greedy),
        "rows_tokenised_otherwise": list(found.tokenised_otherwise),
        "prompts_rendered_otherwise": list(found.rendered_otherwise),
    }


def measurements_of(found: Findings, decision: str) -> list[Measurement]:
    """Return the measurements of the evidence."""
    apart = round(found.apart.tokens_per_s, 1) if found.apart else None
    tokenised, rendered = len(found.tokenised_otherwise), len(found.rendered_otherwise)
    return [
        *judge(found.checkpoints, found.merged, found.apart, found.checkpoints.greedy),
        measure("rows_tokenised_otherwise", tokenised, "rows", "<=", 0),
        measure("prompts_rendered_otherwise", rendered, "rows", "<=", 0),
        measure("rows_compared", found.rows, "rows"),
        measure("decision", decision, "decision"),
        # This pipeline ships the merged file; a base with adapters is set up by hand.
        measure("ships_as_decided", decision == "merge", "flag", "==", True, on_breach="warn"),
        measure("merged_tokens_per_s", round(found.merged.tokens_per_s, 1), "tokens/s"),
        measure("apart_tokens_per_s", apart, "tokens/s"),
    ]


def run(ctx: StepContext) -> Evidence:
    """Compare merged and adapter, in transformers and in the engine, and decide."""
    found = compare(ctx, dataset_rows(ctx), validation_rows(ctx, ENGINE_ROWS))
    decision, reason = decide(
        ctx.config.deployment.multi_tenant,
        found.merged.tokens_per_s,
        found.apart.tokens_per_s if found.apart else None,
    )
    ctx.write_json("decision.json", decision_document(found, decision, reason))
    measurements = measurements_of(found, decision)
    values = {m.name: m.value for m in measurements}
    in_engine = (
        f"{values['engine_same_answers']:.0%} of the answers are the same in the engine"
        if found.apart
        else f"merged against adapter in the engine: {NO_DORA}"
    )
    return ctx.conclude(
        f"{decision}: {reason}; KL {found.checkpoints.mean_kl:.1e} nats; {in_engine}; "
        f"{values['engine_as_transformers']:.0%} equal those of transformers; "
        f"{len(found.tokenised_otherwise)} of {found.rows} rows have other token ids",
        measurements,
    )
