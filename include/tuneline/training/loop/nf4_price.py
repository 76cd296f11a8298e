"""Measure what NF4 would cost a base that was trained on unquantised, where that is cheap."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from importlib.util import find_spec

from tuneline.artifacts.training import TRAINED
from tuneline.errors import UserError, first_line
from tuneline.evidence import Measurement, measure
from tuneline.harness.row_losses import RowLosses
from tuneline.harness.rows import validation_rows
from tuneline.step_context import StepContext
from tuneline.training.loop.validation_loss import Validation

# Rows that show a difference of a few per cent.
ROWS = 32
# On a CPU a model of 135M takes seconds to quantise and to measure; the time grows with its size.
MAX_CPU_PARAMETERS = 400_000_000


@dataclass(frozen=True)
class Price:
    """What NF4 would cost: the measurements, and what they say in a part of a sentence."""

    measurements: list[Measurement]
    sentence: str


def obstacle(ctx: StepContext, device: str, parameters: int) -> str | None:
    """Return why the price is not measured, None if it can be.

    Args:
        ctx: the step.
        device: "cpu" or "cuda".
        parameters: number of parameters of the base.
    """
    if find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    trained = TRAINED.find(ctx.run)
    if trained is not None and trained.sharding != "none":
        return "the base was trained in parts, on several GPUs"
    if device == "cpu" and parameters > MAX_CPU_PARAMETERS:
        return (
            f"on a CPU only bases of up to {MAX_CPU_PARAMETERS / 1e6:.0f} million parameters are "
            f"quantised for it, this one has {parameters / 1e6:.0f}"
        )
    return None


def price_of_nf4(ctx: StepContext) -> Price:
    """Compare the perplexity of the base in NF4 with that of the base as training held it.

    It only informs: what keeps bitsandbytes from quantising this base is stated, not raised.
    """
    from tuneline.training.loop.base_weights import shape_model

    everything = Validation.of(ctx)
    parameters = sum(p.numel() for p in shape_model(everything.base).parameters())
    why_not = obstacle(ctx, everything.device, parameters)
    if why_not is None:
        chosen = {row.row_id for row in validation_rows(ctx, ROWS)}
        validation = replace(everything, rows=[r for r in everything.rows if r.row_id in chosen])
        ctx.log(f"measuring the base in NF4 on {len(validation.rows)} validation rows")
        try:
            quantised = losses_in_nf4(validation)
        except (ImportError, RuntimeError, ValueError, AssertionError, UserError) as error:
            why_not = f"bitsandbytes can't quantise this base: {first_line(error)}"
    if why_not is not None:
        return Price([measure("nf4", f"not measured: {why_not}", "")], f"NF4: {why_not}")
    plain = validation.losses(validation.load())
    return _price(quantised, plain)


def losses_in_nf4(validation: Validation) -> RowLosses:
    """Measure the losses of the base in NF4, computing in bf16 as QLoRA does."""
    in_4bit = replace(
        validation,
        plan=validation.plan.model_copy(update={"precision": "bf16"}),
        config=validation.config.model_copy(update={"qlora": True}),
    )
    found = in_4bit.losses(in_4bit.load())
    # The head refers to the model that refers to it; two models at once may be too much.
    gc.collect()
    return found


def _price(quantised: RowLosses, plain: RowLosses) -> Price:
    ratio = quantised.ratio_to(plain)
    return Price(
        [
            measure("perplexity_unquantised", round(plain.perplexity, 4), ""),
            measure("perplexity_4bit", round(quantised.perplexity, 4), ""),
            measure(
                "perplexity_ratio", round(ratio.value, 4), "ratio", noise=round(ratio.error, 4)
            ),
            measure("rows_compared", len(plain.sums), "rows"),
        ],
        f"in NF4 it would have perplexity {quantised.perplexity:.2f} against "
        f"{plain.perplexity:.2f}, {ratio.value:.2f} times, on {len(plain.sums)} validation rows",
    )
