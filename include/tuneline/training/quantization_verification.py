"""quantization_verification: prove that QLoRA trained on 4-bit NF4, at no hidden loss.

Type, block size, double quantisation and compute type are read from every linear layer of the base,
loaded as training loaded it; nothing else may be 4-bit. The cost is the perplexity on validation
rows against the unquantised base, paired by row; the gain the memory against bf16, counted from the
tensors. Method: Dettmers et al., "QLoRA", 2023.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneline.evidence import Evidence, Measurement, Verdict, measure
from tuneline.statistics import RowLosses
from tuneline.step_context import StepContext

QUANT_TYPE = "nf4"
COMPUTE_TYPE = "bfloat16"
BLOCK_SIZE = 64


@dataclass(frozen=True)
class LayerFacts:
    """Facts read from one linear layer of the loaded model.

    Attributes:
        quant_type: nf4 or fp4; the plain type of the weight when it is not quantised,
            `missing` when the model has no such layer.
        block_size: number of values that share a scale; None when not quantised.
        double: True if the scales are quantised themselves.
        parameters: those of the weight, before quantisation.
    """

    name: str
    quant_type: str
    block_size: int | None
    double: bool
    compute_type: str
    parameters: int
    bytes: int

    @property
    def as_required(self) -> bool:
        """True if the layer is NF4 with double quantisation, computing in bf16."""
        found = (self.quant_type, self.block_size, self.double, self.compute_type)
        return found == (QUANT_TYPE, BLOCK_SIZE, True, COMPUTE_TYPE)


@dataclass(frozen=True)
class ModelFacts:
    """Facts of the whole loaded model; `others` are 4-bit modules that should not be: a head."""

    others: tuple[str, ...]
    bytes: int
    bytes_in_bf16: int


def read_layer(name: str, module: Any) -> LayerFacts:
    """Read the facts of a linear layer from its weight and quantisation state."""
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        plain = str(weight.dtype).removeprefix("torch.")
        return LayerFacts(
            name, plain, None, False, plain, weight.numel(), weight.numel() * weight.element_size()
        )
    # The code tables are one kilobyte for all layers together, so they are left out.
    held = [weight, state.absmax, *([state.state2.absmax] if state.nested else [])]
    return LayerFacts(
        name=name,
        quant_type=str(state.quant_type),
        block_size=int(state.blocksize),
        double=bool(state.nested),
        compute_type=str(module.compute_dtype).removeprefix("torch."),
        parameters=math.prod(state.shape),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
    )


def read_layers(model: Any, expected: Sequence[str]) -> list[LayerFacts]:
    """Read every layer that should be 4-bit: the linear layers of the plain architecture."""
    modules = dict(model.named_modules())
    return [
        read_layer(name, modules[name])
        if name in modules
        else LayerFacts(name, "missing", None, False, "none", 0, 0)
        for name in expected
    ]


def read_model(model: Any, layers: Sequence[LayerFacts]) -> ModelFacts:
    """Read the facts of the whole model, of which some layers should be 4-bit."""
    expected = {layer.name for layer in layers}
    others = tuple(
        name
        for name, module in model.named_modules()
        if name not in expected
        and getattr(getattr(module, "weight", None), "quant_state", None) is not None
    )
    weights = model.named_parameters()
    rest = [w for name, w in weights if name.removesuffix(".weight") not in expected]
    held = sum(layer.bytes for layer in layers) + sum(w.numel() * w.element_size() for w in rest)
    parameters = sum(layer.parameters for layer in layers) + sum(w.numel() for w in rest)
    return ModelFacts(others, held, 2 * parameters)


def judge(
    layers: Sequence[LayerFacts],
    whole: ModelFacts,
    quantised: RowLosses,
    plain: RowLosses,
    max_ratio: float,
) -> list[Measurement]:
    """Measure a 4-bit base by its losses and those of the unquantised one on the same rows."""
    wrong = [layer.name for layer in layers if not layer.as_required]
    held = sum(layer.bytes for layer in layers)
    in_bf16 = 2 * sum(layer.parameters for layer in layers)
    ratio = math.exp(quantised.mean - plain.mean)
    noise = ratio * quantised.log_ratio_error(plain)
    return [
        measure("layers_expected_4bit", len(layers), "layers", ">", 0),
        measure("layers_not_as_required", len(wrong), "layers", "==", 0),
        measure("first_layer_not_as_required", wrong[0] if wrong else "none", ""),
        measure("4bit_besides", len(whole.others), "modules", "==", 0),
        measure("quant_type", _common(layer.quant_type for layer in layers), ""),
        measure("compute_type", _common(layer.compute_type for layer in layers), ""),
        measure("double_quantisation", all(layer.double for layer in layers), ""),
        measure("block_sizes", _common(str(layer.block_size) for layer in layers), "weights"),
        measure("bits_per_weight", round(8 * held / (in_bf16 / 2), 3), "bits", "<=", 5.0),
        measure("linear_layers", round(held / 2**20, 1), "MiB"),
        measure("saved_against_bf16", round((in_bf16 - held) / 2**20, 1), "MiB", ">", 0),
        measure("model", round(whole.bytes / 2**20, 1), "MiB"),
        measure("model_in_bf16", round(whole.bytes_in_bf16 / 2**20, 1), "MiB"),
        measure("model_over_bf16", round(whole.bytes / whole.bytes_in_bf16, 4), "share", "<", 1.0),
        measure("perplexity_unquantised", round(plain.perplexity, 4), ""),
        measure("perplexity_4bit", round(quantised.perplexity, 4), ""),
        measure(
            "perplexity_ratio",
            round(ratio, 4),
            "ratio",
            "<=",
            max_ratio,
            noise=round(noise, 4),
            tolerance=max_ratio - 1,
        ),
    ]


def _common(values: Any) -> str:
    return ", ".join(sorted(set(values)))


def run(ctx: StepContext) -> Evidence:
    """Verify the 4-bit base, or state that QLoRA is off; writes `layers.json`."""
    if not ctx.config.training.qlora:
        return ctx.conclude(
            "QLoRA is off: the base was trained on unquantised",
            [measure("qlora", False, "")],
            verdict=Verdict.NOT_APPLICABLE,
        )
    from tuneline.training.loop.model import linear_modules, shape_model
    from tuneline.training.loop.token_loss import Validation

    validation = Validation.of(ctx)
    expected = linear_modules(shape_model(validation.base))
    ctx.log(f"loading the base in 4-bit, {len(expected)} linear layers expected")
    model = validation.load()
    layers = read_layers(model, expected)
    whole = read_model(model, layers)
    quantised = validation.losses(model)
    del model
    # The head refers to the model that refers to it; two models at once may be too much.
    gc.collect()
    plain = validation.losses(validation.load_exact())
    ctx.write_json("layers.json", [asdict(layer) for layer in layers])
    limit = ctx.config.training.max_perplexity_ratio
    measurements = judge(layers, whole, quantised, plain, limit)
    wrong = sum(not layer.as_required for layer in layers)
    found = (
        f"{wrong} of {len(layers)} linear layers are not NF4 with double quantisation in bf16"
        if wrong
        else f"all {len(layers)} linear layers are NF4, double-quantised, computing in bf16"
    )
    return ctx.conclude(
        f"{found}; perplexity {quantised.perplexity:.2f} against {plain.perplexity:.2f} "
        f"unquantised, {math.exp(quantised.mean - plain.mean):.2f} times (limit {limit:g})",
        measurements,
    )
