"""Compare the losses of the merged model with those of the engine, and after QLoRA of the adapter.

transformers in float32 gives the merged checkpoint's loss on the answers of validation rows. The
engine's loss on the same tokens must give the same perplexity: what greedy answers hide, such as a
norm that is a little off, moves every probability.

An adapter of QLoRA was trained on a base in NF4 and is merged into the unquantised base (merging
into 4-bit weights loses more: peft#2321, transformers#31293), so it ends up on other weights than
it was trained on. What that costs is the merged model's perplexity over that of the adapter on its
4-bit base, which checkpointing measured row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import ADAPTER, ADAPTER_LOSSES, ADAPTER_WEIGHTS, MERGED
from tuneline.asking.models import request_for
from tuneline.asking.rows import validation_rows
from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import TunelineError
from tuneline.evidence import Breach, Finding, measure
from tuneline.gguf.tokenizer import END_OF_TURN
from tuneline.serving.engines.divergence import ScoredRow, checkpoint_losses
from tuneline.serving.engines.engine import Engine, ServedModel
from tuneline.statistics import Interval, RowLosses, z_shown
from tuneline.step_context import StepContext
from tuneline.store import sha256_file

# The engine differs from transformers by its rounding alone: few rows show it. What QLoRA costs
# differs from row to row; deployment.quality_rows asks for more.
ENGINE_ROWS, QLORA_ROWS = 16, 64
# The farther end of the interval was 0.07 % at most with faithful files of a 135M model on a CPU,
# and 0.19 % to 0.43 % where one norm was 2 % off.
MAX_ENGINE_CHANGE = 0.001


@dataclass(frozen=True)
class ScoredRows:
    """Validation rows and the merged checkpoint's losses on their answers.

    Attributes:
        rows: token ids of each row, and the places of those that were learned.
        losses: losses of the merged checkpoint, each row with the weight 1.
    """

    ids: tuple[str, ...]
    rows: list[ScoredRow]
    losses: RowLosses


def compare_losses(
    ctx: StepContext, engine: Engine, model: ServedModel, renderer: Renderer, threads: int
) -> Finding:
    """Measure the merged checkpoint, then compare the engine and the adapter with it, in turns."""
    ctx.log("comparing losses row by row")
    rows = score_rows(ctx, renderer, threads)
    request = request_for(model, ctx.config.deployment, threads=threads)
    found = engine.losses(model.path, rows.rows, request)
    by_engine = compare_engine(engine.title, rows.losses, found)
    if not ctx.config.training.qlora:
        return by_engine
    by_adapter = compare_adapter(
        rows, adapter_losses(ctx, rows), ctx.config.deployment.max_merge_loss
    )
    return Finding(
        [*by_engine.measurements, *by_adapter.measurements],
        f"{by_adapter.sentence}; {by_engine.sentence}",
    )


def score_rows(ctx: StepContext, renderer: Renderer, threads: int) -> ScoredRows:
    """Draw validation rows and measure the merged checkpoint on their answers."""
    wanted = ctx.config.deployment.quality_rows or QLORA_ROWS
    rows = validation_rows(ctx, wanted if ctx.config.training.qlora else ENGINE_ROWS)
    rendered = renderer.render([row.messages for row in rows])
    # Training takes no row without an exact mask.
    scored = [
        ScoredRow.marked(one.ids, one.loss_mask or [False] * len(one.ids)) for one in rendered
    ]
    sums = checkpoint_losses(MERGED.fetch(ctx), scored, threads=threads)
    targets = tuple(len(row.places) for row in scored)
    return ScoredRows(tuple(row.row_id for row in rows), scored, _losses(sums, targets))


def _losses(sums: Sequence[float], targets: tuple[int, ...]) -> RowLosses:
    return RowLosses(tuple(sums), targets, (1.0,) * len(targets))


def compare_engine(title: str, merged: RowLosses, found: Sequence[float] | None) -> Finding:
    """Compare the engine's perplexity with that of the merged checkpoint in transformers.

    The farther end of the 95 % interval of their ratio decides, paired by row: an engine that is
    right on average, but not row by row, computes another model.
    """
    name = "engine_perplexity_change"
    known = [
        measure("rows_scored", len(merged.sums), "rows"),
        measure("merged_perplexity", round(merged.perplexity, 4), "perplexity"),
    ]
    said = f"the merged model has perplexity {merged.perplexity:.4g} in transformers"
    if found is None:
        why = f"not measured: {title} does not report the probabilities of given tokens"
        unknown = measure(name, None, "share", "<=", MAX_ENGINE_CHANGE, on_breach="inconclusive")
        return Finding([*known, unknown], f"{said}, {why}")
    losses = _losses(found, merged.targets)
    ratio = losses.ratio_to(merged)
    farthest = max(ratio.upper - 1, 1 - ratio.lower)
    off = abs(ratio.value - 1)
    return Finding(
        [
            *known,
            measure("engine_perplexity", round(losses.perplexity, 4), "perplexity"),
            measure(name, _short(farthest), "share", "<=", MAX_ENGINE_CHANGE),
        ],
        f"{said}, {losses.perplexity:.4g} in {title}: {off:.2%} apart, at most {farthest:.2%} "
        f"(limit {MAX_ENGINE_CHANGE:.1%})",
    )


def adapter_losses(ctx: StepContext, rows: ScoredRows) -> RowLosses | str:
    """Return the losses of the adapter on its 4-bit base on the same rows, or why there are none.

    Raises:
        TunelineError: if a row has other tokens than training saw.
    """
    if ctx.run.find_evidence(ADAPTER_LOSSES.step) is None or not ADAPTER_LOSSES.exists(ctx):
        return f"{ADAPTER_LOSSES.step} left no losses of the adapter; run it again"
    recorded = ADAPTER_LOSSES.read(ctx)
    if recorded.adapter_sha256 != sha256_file(ADAPTER.fetch(ctx) / ADAPTER_WEIGHTS):
        return f"the losses of {ADAPTER_LOSSES.step} are of another adapter; run it again"
    place = {row_id: at for at, row_id in enumerate(recorded.row_ids)}
    if missing := [row_id for row_id in rows.ids if row_id not in place]:
        return f"{ADAPTER_LOSSES.step} has not measured row {missing[0]}; run it again"
    chosen = [place[row_id] for row_id in rows.ids]
    targets = tuple(recorded.targets[at] for at in chosen)
    for row_id, trained, ours in zip(rows.ids, targets, rows.losses.targets, strict=True):
        if trained != ours:
            raise TunelineError(
                f"row {row_id} has {ours} learned tokens with the merged model's tokenizer and had "
                f"{trained} in training; run export_candidate again"
            )
    sums = tuple(recorded.sums[at] for at in chosen)
    return RowLosses(sums, targets, tuple(recorded.weights[at] for at in chosen))


def compare_adapter(rows: ScoredRows, adapter: RowLosses | str, limit: float) -> Finding:
    """Compare the merged model's perplexity with that of the adapter on its 4-bit base.

    The upper end of the 95 % interval decides, paired by row. A merged model that is worse beyond
    chance, and by more than the limit, fails; where only the interval reaches beyond the limit,
    more rows have to decide.

    Args:
        adapter: those of the adapter; a text that says why there are none.
        limit: largest share of perplexity that may be lost.
    """
    name = "merge_loss_upper"
    if not isinstance(adapter, str) and len(adapter.sums) < 2:
        adapter = "one validation row has no interval; give the run more rows"
    if isinstance(adapter, str):
        undecided = measure(name, None, "share", "<=", limit, on_breach="inconclusive")
        return Finding([undecided], f"the price of the merge is not measured: {adapter}")
    merged = RowLosses(rows.losses.sums, adapter.targets, adapter.weights)
    ratio = merged.ratio_to(adapter)
    undecided_by_rows = ratio.lower <= 1 or ratio.value - 1 <= limit
    breach: Breach = "inconclusive" if undecided_by_rows else "fail"
    more = ""
    if undecided_by_rows and ratio.upper - 1 > limit:
        needed = rows_that_decide(ratio, len(adapter.sums), limit)
        more = f"; about {needed} validation rows would decide (deployment.quality_rows)"
    return Finding(
        [
            measure("adapter_on_4bit_perplexity", round(adapter.perplexity, 4), "perplexity"),
            measure("merge_loss", _short(ratio.value - 1), "share", noise=_noise(ratio.error)),
            measure(name, _short(ratio.upper - 1), "share", "<=", limit, on_breach=breach),
        ],
        f"the adapter has perplexity {adapter.perplexity:.4g} on its 4-bit base, as trained, "
        f"and {merged.perplexity:.4g} merged into the unquantised one, {ratio.value:.3f} times, "
        f"at most {ratio.upper:.3f} (limit {1 + limit:g}){more}",
    )


def rows_that_decide(ratio: Interval, rows: int, limit: float) -> int:
    """Return the rows that decide with a probability of 80 % if the ratio stays as measured."""
    distance = abs(math.log((1 + limit) / ratio.value))
    needed = z_shown() * ratio.error / ratio.value / max(distance, 1e-3)
    return max(math.ceil(rows * needed**2), rows + 1)


def _short(value: float) -> float:
    """Round to four significant digits; the shares here are small."""
    if not value or not math.isfinite(value):
        return value
    return float(f"{value:.4g}")


def _noise(error: float) -> float | None:
    # Losses that are not numbers have no noise, and JSON has no word for it.
    return _short(error) if math.isfinite(error) else None


@dataclass(frozen=True)
class LogitParity:
    """The mean KL from adapter to merged over all tokens, nats, and the merged one's answers."""

    mean_kl: float
    greedy: tuple[str, ...]


def compare_checkpoints(
    base_dir: Path,
    adapter_dir: Path,
    merged_dir: Path,
    *,
    texts: Sequence[str],
    prompts: Sequence[str],
    max_tokens: int,
    threads: int,
) -> LogitParity:
    """Compare base plus adapter with the merged checkpoint, and answer prompts with the latter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(merged_dir, local_files_only=True)

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()

    def ids_of(text: str) -> Any:
        return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]

    divergences = []
    with torch.inference_mode():
        apart = PeftModel.from_pretrained(load(base_dir), adapter_dir).eval()
        before = [apart(input_ids=ids_of(text)).logits[0] for text in texts]
        del apart
        merged = load(merged_dir)
        for text, old in zip(texts, before, strict=True):
            new = merged(input_ids=ids_of(text)).logits[0]
            first, second = old.log_softmax(-1), new.log_softmax(-1)
            divergences.append((first.exp() * (first - second)).sum(-1).clamp_min(0))
        greedy = tuple(_answer(merged, tokenizer, ids_of(text), max_tokens) for text in prompts)
    return LogitParity(mean_kl=float(torch.cat(divergences).mean()), greedy=greedy)


def _answer(model: Any, tokenizer: Any, ids: Any, max_tokens: int) -> str:
    # The sampling fields of a checkpoint's generation config would only bring warnings.
    out = model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=_ends(tokenizer),
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    # Decoded behind its prompt: some tokenizers take the space at the start of a text away, which
    # the engine keeps.
    prompt, whole = (
        str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in (ids[0], out[0])
    )
    return whole[len(prompt) :]


def _ends(tokenizer: Any) -> list[int]:
    """Return the tokens at which the engine ends an answer: end of sequence and end of turn."""
    vocabulary = tokenizer.get_vocab()
    ends = {tokenizer.eos_token, *END_OF_TURN}
    return sorted(vocabulary[token] for token in ends if token in vocabulary)
