"""Check that accumulated micro-batches train as one large batch, and packed rows as padded ones.

**Accumulation.** The reference shares only the model: full logits of one padded batch, torch's
cross-entropy, one backward pass. How far rounding alone moves it is measured on the same rows: the
model's own head, row by row, sums in another order. The error of a loss that is normalised per
micro-batch is measured too (transformers#35203): a check that could not see that fault would prove
nothing.

**Packing.** Rows lie end to end, and FlashAttention keeps them apart by their limits; whether an
architecture with a state from token to token, or code from a hub, does, no list of names says. So
the model is asked, in its own arithmetic: each row must have the losses that it has alone, and keep
them when its neighbour is exchanged. The second compares passes of the same shape and rounding, and
sees in bf16 what rounding would hide from the first.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneline.artifacts.training import Packing
from tuneline.errors import first_line
from tuneline.evidence import Measurement, measure
from tuneline.machine.memory import is_out_of_memory
from tuneline.training.loop.model import (
    Precision,
    attention_for,
    attention_of,
    autocast,
    free_gathered_weights,
    use_attention,
)
from tuneline.training.loop.processes import ALONE, ProcessGroup
from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch, tail

ROWS = 4
# Rows beyond this only make the full logits of the reference large.
MAX_TOKENS = 512
# Differences below this share don't matter: bf16, in which most runs compute, rounds by 4e-3.
IMMATERIAL = 1e-4
# A third order of sums differs from the first by as much as the second does, give or take.
ROUNDING_FACTOR = 3.0


@dataclass(frozen=True)
class AccumulationCheck:
    """The relative differences between accumulation and one large batch of `rows` rows.

    Attributes:
        loss: loss of the large batch, nats per token.
        gradient_difference: norm of the difference of all gradients over that of the reference.
        naive_difference: the same for a loss that is normalised per micro-batch.
        loss_rounding, gradient_rounding: the same for the reference summed row by row.
    """

    rows: int
    loss: float
    loss_difference: float
    gradient_difference: float
    naive_difference: float
    loss_rounding: float
    gradient_rounding: float

    @property
    def loss_tolerance(self) -> float:
        """Largest difference of the loss that is rounding or does not matter."""
        return max(IMMATERIAL, ROUNDING_FACTOR * self.loss_rounding)

    @property
    def gradient_tolerance(self) -> float:
        """Largest difference of the gradients that is rounding or does not matter."""
        return max(IMMATERIAL, ROUNDING_FACTOR * self.gradient_rounding)


def _unequal_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the rows whose learned tokens differ most, where wrong normalisation shows."""
    short = [r for r in rows if len(r.ids) <= MAX_TOKENS] or sorted(rows, key=lambda r: len(r.ids))
    ordered = sorted(short, key=lambda r: (r.targets, r.row_id))
    if len(ordered) <= ROWS:
        return ordered
    return ordered[: ROWS // 2] + ordered[-ROWS // 2 :]


def check_accumulation(trainer: Any, rows: Sequence[EncodedRow]) -> AccumulationCheck:
    """Compare the trainer's accumulated step with one large batch on the same rows.

    The model is changed: the adapter is randomised (a fresh one has no gradient in half of its
    matrices), dropout is switched off, and weights and arithmetic become float32, except 4-bit
    weights. Each of `ROWS` rows is one micro-batch; packed, every other one shares a sequence.
    """
    import torch

    rows = _unequal_rows(rows)
    model = trainer.model
    _widen(torch, model)
    _randomise(torch, model)
    packed = trainer.settings.packing.packed
    parts = [rows[0::2], rows[1::2]] if packed and len(rows) > 1 else [[row] for row in rows]
    batches = [as_batch(torch, part, trainer.pad_id, packed=packed) for part in parts]
    large = trainer._prepare_inputs(as_batch(torch, rows, trainer.pad_id))

    # FlashAttention has no float32: its own check is below.
    with _exact(model), trainer.padded_attention():
        accumulated, gradients = _gradients(torch, model, _accumulated(trainer, batches))
        expected, reference = _gradients(torch, model, _reference(torch, model, large))
        _, naive = _gradients(torch, model, _reference(torch, model, large, per_row=True))
        by_row, other_order = _gradients(torch, model, _by_row(torch, model, large))

    def differs(found: Any) -> float:
        return float((found - reference).norm() / reference.norm())

    return AccumulationCheck(
        rows=len(rows),
        loss=expected,
        loss_difference=abs(accumulated - expected) / expected,
        gradient_difference=differs(gradients),
        naive_difference=differs(naive),
        loss_rounding=abs(by_row - expected) / expected,
        gradient_rounding=differs(other_order),
    )


def _accumulated(trainer: Any, batches: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Let the trainer accumulate micro-batches; yield their parts of the loss."""
    trainer.current_gradient_accumulation_steps = len(batches)
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    for batch in batches:
        yield float(trainer.training_step(trainer.model, dict(batch), items))


def _reference(
    torch: Any, model: Any, batch: dict[str, Any], *, per_row: bool = False
) -> Iterator[float]:
    """Take one batch by the plain forward pass; `per_row` is the wrong normalisation."""
    features = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits, labels = model(**features, use_cache=False).logits[:, :-1], batch["labels"][:, 1:]
    # Flat on purpose: torch sums a strided vocabulary axis less exactly (6e-5 off in float32).
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
    ).view(labels.shape)
    weight = batch["weight"][:, None] * (labels != IGNORED)
    if per_row:
        loss = ((losses * weight).sum(1) / weight.sum(1)).mean()
    else:
        loss = (losses * weight).sum() / weight.sum()
    loss.backward()
    yield float(loss.detach())


def _by_row(torch: Any, model: Any, batch: dict[str, Any]) -> Iterator[float]:
    """Take the reference row by row, its head on learned tokens alone, where it can leave any out.

    Rows keep the padding that they have in the batch, so that nothing but the order of sums differs
    from the reference: a mask that is not heeded moves both alike, and can't pass for rounding.
    """
    learned = batch["labels"][:, 1:] != IGNORED
    total = (batch["weight"][:, None] * learned).sum()
    takes = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
    for row, mask in enumerate(learned):
        places = mask.nonzero().flatten()
        kept = {"logits_to_keep": places} if takes else {}
        inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, **kept, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(
            logits if takes else logits[places], batch["labels"][row, places + 1], reduction="sum"
        )
        loss = loss * batch["weight"][row] / total
        loss.backward()
        yield float(loss.detach())


def _widen(torch: Any, model: Any) -> None:
    """Make weights and products float32; packed 4-bit weights are not floats and stay."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32


def _randomise(torch: Any, model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(values.to(parameter.dtype))


@contextlib.contextmanager
def _exact(model: Any) -> Iterator[None]:
    """Switch off dropout and the rounding of autocast; the training mode stays."""
    import torch

    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    before = [m.p for m in dropouts]
    # accelerate wraps the forward of a trained model in autocast.
    wrapped = model.__dict__.pop("forward", None)
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p
        if wrapped is not None:
            model.forward = wrapped


def _gradients(torch: Any, model: Any, losses: Iterator[float]) -> tuple[float, Any]:
    """Run backward passes; return their loss and the adapter's gradients as a float64 vector."""
    model.zero_grad()
    loss = sum(losses)
    weights = (p.grad for p in model.parameters() if p.requires_grad and p.grad is not None)
    gradients = torch.cat([gradient.detach().double().flatten().cpu() for gradient in weights])
    model.zero_grad()
    return loss, gradients


FLASH = "flash_attention_2"
# Tokens of a row in the check: enough for a neighbour to matter, and logits stay small.
MOST_TOKENS = 64
# Mean difference of a token's loss, nats. In bf16 another order of sums differs by some hundredths.
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.1}
# The same where only a neighbour differs. Experts of a mixture may round by what else they get.
NEIGHBOUR_TOLERANCE = 1e-4
# A neighbour must matter so many times more than that where rows do see each other.
_POWER = 3.0

# What the code of a model may raise when it does not take packed rows; memory is another matter.
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class FlatteningCheck:
    """Losses of packed rows against those of padded rows, mean differences of a token in nats.

    Attributes:
        loss_difference: packed against padded; of the row that differs most.
        neighbour_difference: with the first row of the pack against another one in its place.
        visible_difference: the same where rows do see each other.
    """

    loss_difference: float
    neighbour_difference: float
    visible_difference: float
    tolerance: float

    @property
    def fault(self) -> str | None:
        """Why the model can't be packed; None if it can."""
        # Not a number is a fault too.
        if not self.neighbour_difference <= NEIGHBOUR_TOLERANCE:
            return (
                "a row's loss changes with its neighbour in the sequence, by "
                f"{self.neighbour_difference:.2g} nats a token: its attention does not keep rows "
                "apart"
            )
        if not self.loss_difference <= self.tolerance:
            return (
                f"packed and padded rows differ by {self.loss_difference:.2g} nats a token, at "
                f"most {self.tolerance:g} is rounding"
            )
        if not self.visible_difference >= _POWER * NEIGHBOUR_TOLERANCE:
            return (
                "nothing shows whether rows see each other: even where they do, a neighbour "
                f"changes a row's loss by {self.visible_difference:.2g} nats a token only"
            )
        return None


def packing_attention(model: Any, device: str, precision: Precision) -> str | None:
    """Return the attention that packed rows get; None if they can't be packed here."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    # FlashAttention has no float32.
    flash = (
        device == "cuda"
        and precision == "bf16"
        and is_flash_attn_2_available()
        and getattr(model.get_base_model(), "_supports_flash_attn", False)
    )
    return FLASH if flash else None


def choose_packing(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    setting: Literal["auto", "on", "off"],
    device: str,
    precision: Precision,
    pad_id: int,
    group: ProcessGroup = ALONE,
) -> Packing:
    """Decide how a model gets its rows, in all processes alike, and give it the attention."""
    own = attention_of(model)
    if setting == "off":
        return Packing(attention=own, reason="training.packing is off")
    attention = packing_attention(model, device, precision)
    if attention is None:
        reason = (
            "packing needs FlashAttention: a GPU, bf16, flash-attn installed and an architecture "
            "that has it"
        )
        return Packing(attention=own, refused=setting == "on", reason=reason)
    found, fault = None, None
    try:
        with attention_for(model, attention):
            found = check_flattening(model, rows, device=device, precision=precision, pad_id=pad_id)
        fault = found.fault
    except _REFUSALS as error:
        if is_out_of_memory(error):
            raise
        fault = f"the model refused packed rows ({type(error).__name__}: {first_line(error)})"
    faults = [other for other in group.gather(fault) if other]
    if found is None or faults:
        return Packing(attention=own, refused=True, reason=f"{attention}: {faults[0]}")
    use_attention(model, attention)
    differences = {
        "loss_difference": found.loss_difference,
        "neighbour_difference": found.neighbour_difference,
    }
    return Packing(packed=True, attention=attention, padded_attention=own, **differences)


def _row_ends(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the ends of a long, a short and a middling row, in this order, learned whole."""
    ends = [
        row if len(row.ids) <= MOST_TOKENS else tail(row, MOST_TOKENS / len(row.ids))
        for row in sorted(rows, key=lambda row: (-len(row.ids), row.row_id))
    ]
    picked = [ends[0], ends[-1], ends[len(ends) // 2]]
    return [replace(row, learned=(True,) * len(row.ids)) for row in picked]


def check_flattening(
    model: Any, rows: Sequence[EncodedRow], *, device: str, precision: Precision, pad_id: int
) -> FlatteningCheck:
    """Compare losses of three packed and padded rows, with the attention that the model has."""
    import torch

    taken = _row_ends(rows)
    # The same tokens backwards: as long, and hardly what the next row would expect.
    exchanged = [replace(taken[0], ids=taken[0].ids[::-1]), *taken[1:]]

    def padded() -> list[Any]:
        return _scores(model, as_batch(torch, taken, pad_id), taken, device)

    def packed(some: Sequence[EncodedRow]) -> list[Any]:
        return _scores(model, as_batch(torch, some, pad_id, packed=True), some, device)

    def seeing(some: Sequence[EncodedRow]) -> list[Any]:
        batch = as_batch(torch, some, pad_id, packed=True)
        positions = torch.arange(batch["input_ids"].shape[1])[None]
        whole = {name: batch[name] for name in ("input_ids", "labels")}
        return _scores(model, {**whole, "position_ids": positions}, some, device)

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(torch, device, precision):
            together = packed(taken)
            return FlatteningCheck(
                _differ(padded(), together),
                _differ(together[1:], packed(exchanged)[1:]),
                _differ(seeing(taken)[1:], seeing(exchanged)[1:]),
                TOLERANCES[precision],
            )
    finally:
        free_gathered_weights(model)
        model.train(was_training)


def _scores(
    model: Any, batch: Mapping[str, Any], rows: Sequence[EncodedRow], device: str
) -> list[Any]:
    """Return the log-probability of each predicted token of a batch, row by row."""
    batch = {n: cells.to(device) if hasattr(cells, "to") else cells for n, cells in batch.items()}
    labels = batch["labels"][:, 1:]
    not_for_logits = {"labels", "weight", "rehearsal"}
    features = {name: cells for name, cells in batch.items() if name not in not_for_logits}
    logits = model(**features, use_cache=False).logits[:, :-1].float()
    scores = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return list(scores[labels != IGNORED].split([row.targets for row in rows]))


def _differ(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the mean difference of a token, of the row that differs most."""
    import torch

    pairs = zip(one, other, strict=True)
    # The largest of torch is NaN where one is.
    return float(torch.stack([(a - b).abs().mean() for a, b in pairs]).max())


_UNITS = {
    "padding_share": "share of tokens",
    "padding_share_if_padded": "share of tokens",
    "tokens_per_step": "tokens",
}


def packing_measurements(
    packing: Packing, batches: Mapping[str, float], setting: str
) -> list[Measurement]:
    """Return the measurements of packing; with the setting `on`, rows that are padded warn."""
    rows = "packed" if packing.packed else "padded"
    if not packing.packed and batches["padding_share"] < batches["padding_share_if_padded"]:
        rows = "end to end by training.cpu_kernels"
    asked = measure("packing", rows, "", "==", "packed", on_breach="warn")
    found = [
        asked if setting == "on" else measure("packing", rows, ""),
        measure("packing_reason", packing.reason or f"with {packing.attention}", ""),
        *(measure(name, value, _UNITS[name]) for name, value in batches.items()),
    ]
    for name in ("loss_difference", "neighbour_difference"):
        value = getattr(packing, name)
        if value is not None:
            found.append(measure(f"packed_{name}", value, "nats"))
    return found


def packing_sentence(packing: Packing) -> str:
    """Return the part of the summary on packing, an empty text if nothing is to be said."""
    if packing.packed:
        return f", rows packed ({packing.attention})"
    return f", rows padded: {packing.reason}" if packing.refused else ""
