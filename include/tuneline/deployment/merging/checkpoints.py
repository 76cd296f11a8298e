"""Compare the losses of the merged model with those of the engine, and after QLoRA of the adapter.

transformers in float32 gives the merged checkpoint's loss on each token of the answers of
validation rows. What greedy answers hide, such as a norm that is a little off, moves every
probability. So does rounding, and how much depends on the model and on the engine's number format.
So transformers scores the same tokens in bfloat16 too, and the engine may be about as far from
float32 as that, in its own format. Distances are those of log-odds, that is of how far a token's
logit is ahead of all others: rounding moves those of sure and of unsure tokens alike, while the sum
of the losses hangs on a few unsure ones.

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

import numpy as np
from numpy.typing import NDArray

from tuneline.artifacts.training import ADAPTER, ADAPTER_LOSSES, ADAPTER_WEIGHTS, MERGED
from tuneline.asking.models import request_for
from tuneline.asking.rows import validation_rows
from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import TunelineError
from tuneline.evidence import Breach, Finding, measure
from tuneline.gguf.tokenizer import END_OF_TURN
from tuneline.serving.engines.divergence import NumberFormat, ScoredRow, checkpoint_losses
from tuneline.serving.engines.engine import Engine, ServedModel
from tuneline.statistics import Interval, RowLosses, rms_ratio, z_shown
from tuneline.step_context import StepContext
from tuneline.store import sha256_file

# The engine differs from transformers by its rounding alone: few rows show it. What QLoRA costs
# differs from row to row; deployment.quality_rows asks for more.
ENGINE_ROWS, QLORA_ROWS = 16, 64
# What an engine adds to rounding, in squares, may be as much as rounding itself. Of a 135M model,
# faithful engines measured 0.3 (llama.cpp) to 1.05 (other kernels of attention), a norm that is 2 %
# off 1.4 to 2.0 in bfloat16 and 7 to 13 in float16.
MAX_ROUNDING = round(math.sqrt(2), 3)
# Unit roundoff; errors are in proportion to it (bfloat16 to float16, measured: 7.8 instead of 8).
_ROUNDOFF: dict[NumberFormat, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# A float32 tells probabilities next to 1 apart by this; losses far below the floor count as equal.
_RESOLUTION, _FLOOR = 2.0**-23, 1e-5
# The exponential of more is beyond a float.
_LARGEST_LOSS = 700.0
# Losses in nats of each token that counts, by row.
TokenLosses = Sequence[Sequence[float]]


@dataclass(frozen=True)
class ScoredRows:
    """Validation rows and the merged checkpoint's losses on their answers.

    Attributes:
        rows: token ids of each row, and the places of those that were learned.
        exact: losses in float32.
        rounded: losses in bfloat16.
    """

    ids: tuple[str, ...]
    rows: list[ScoredRow]
    exact: TokenLosses
    rounded: TokenLosses


def compare_losses(
    ctx: StepContext, engine: Engine, model: ServedModel, renderer: Renderer, threads: int
) -> Finding:
    """Measure the merged checkpoint, then compare the engine and the adapter with it, in turns."""
    ctx.log("comparing losses row by row")
    rows = score_rows(ctx, renderer, threads)
    request = request_for(model, ctx.config.deployment, threads=threads)
    found = engine.losses(model.path, rows.rows, request)
    by_engine = compare_engine(engine.title, rows, found, engine.number_format(model.path))
    if not ctx.config.training.qlora:
        return by_engine
    by_adapter = compare_adapter(
        rows.exact, adapter_losses(ctx, rows), ctx.config.deployment.max_merge_loss
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
    merged = MERGED.fetch(ctx)
    exact = checkpoint_losses(merged, scored, threads=threads)
    rounded = checkpoint_losses(merged, scored, threads=threads, dtype="bfloat16")
    return ScoredRows(tuple(row.row_id for row in rows), scored, exact, rounded)


def compare_engine(
    title: str, rows: ScoredRows, found: TokenLosses | None, number_format: NumberFormat
) -> Finding:
    """Compare the engine's distance from float32 with what rounding alone does to this model.

    The upper end of the 95 % interval of their ratio decides, by rows: an engine that is shown to
    be farther away fails; where only the interval reaches beyond the limit, rows are too few.
    """
    farthest: float | None = None
    breach: Breach = "inconclusive"
    said = f"{title} does not report the probabilities of given tokens: not compared with float32"
    if found is not None:
        ratio = rounding_ratio(rows, found, _ROUNDOFF[number_format] / _ROUNDOFF["bfloat16"])
        farthest = _short(ratio.upper)
        breach = "inconclusive" if ratio.lower <= MAX_ROUNDING else "fail"
        said = (
            f"{title} is {ratio.value:.2g} times as far from float32 as rounding to "
            f"{number_format}, at most {ratio.upper:.2g} times (limit {MAX_ROUNDING:g})"
        )
    name, limit = "engine_rounding_ratio", MAX_ROUNDING
    return Finding(
        [
            measure("rows_scored", len(rows.exact), "rows"),
            measure(name, farthest, "ratio", "<=", limit, on_breach=breach),
        ],
        said,
    )


def rounding_ratio(rows: ScoredRows, found: TokenLosses, scale: float) -> Interval:
    """Return the engine's root mean square distance from float32 over that of rounding.

    Args:
        scale: unit roundoff of the engine's number format over that of bfloat16.
    """
    engine, rounding = [], []
    for row in zip(rows.exact, rows.rounded, found, strict=True):
        exact, rounded, ours = map(_log_odds, row)
        unseen = _RESOLUTION / (np.asarray(row[0]) + _FLOOR)
        engine.append(float(((ours - exact) ** 2).sum()))
        rounding.append(float(((scale * (rounded - exact)) ** 2 + unseen**2).sum()))
    return rms_ratio(engine, rounding)


def _log_odds(losses: Sequence[float]) -> NDArray[np.float64]:
    # log(p / (1 - p)) of p = exp(-loss).
    return -np.log(np.expm1(np.clip(losses, 0.0, _LARGEST_LOSS) + _FLOOR))


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
    for row_id, trained, ours in zip(rows.ids, targets, rows.exact, strict=True):
        if trained != len(ours):
            raise TunelineError(
                f"row {row_id} has {len(ours)} learned tokens with the merged model's tokenizer "
                f"and had {trained} in training; run export_candidate again"
            )
    sums = tuple(recorded.sums[at] for at in chosen)
    return RowLosses(sums, targets, tuple(recorded.weights[at] for at in chosen))


def compare_adapter(losses: TokenLosses, adapter: RowLosses | str, limit: float) -> Finding:
    """Compare the merged model's perplexity with that of the adapter on its 4-bit base.

    The upper end of the 95 % interval decides, paired by row. A merged model that is worse beyond
    chance, and by more than the limit, fails; where only the interval reaches beyond the limit,
    more rows have to decide.

    Args:
        losses: those of the merged model.
        adapter: those of the adapter; a text that says why there are none.
        limit: largest share of perplexity that may be lost.
    """
    name = "merge_loss_upper"
    if not isinstance(adapter, str) and len(adapter.sums) < 2:
        adapter = "one validation row has no interval; give the run more rows"
    if isinstance(adapter, str):
        undecided = measure(name, None, "share", "<=", limit, on_breach="inconclusive")
        return Finding([undecided], f"the price of the merge is not measured: {adapter}")
    merged = RowLosses(tuple(map(sum, losses)), adapter.targets, adapter.weights)
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
