"""Loss on the learned tokens alone and its mean over rows: the one path that measures loss.

On a CPU the head sees only the positions with a label: a small model spends most of its time on the
vocabulary. The loss is normalised over the tokens of the whole batch, each with the weight of its
row, never per micro-batch (transformers#35203 is that fault).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import PLAN, Plan
from tuneline.bases import base_of
from tuneline.config import TrainingConfig
from tuneline.models import load_tokenizer
from tuneline.statistics import RowLosses
from tuneline.step_context import StepContext
from tuneline.training.loop.model import (
    Precision,
    autocast,
    device_of,
    load_adapter,
    load_base,
    load_torch,
    load_unquantised,
)
from tuneline.training.loop.processes import ALONE, ProcessGroup
from tuneline.training.loop.rows import IGNORED, EncodedRow, as_batch, encode_split, pad_token

# Rows of one forward pass without gradients, during training and after it. Another number changes
# the padding and so the rounding; a larger one only pads more.
EVAL_BATCH = 16

# The part of a batch that the loss gets, and not the model.
_OF_ROWS = ("weight", "rehearsal")

# Settings by which some architectures scale or cap their logits; TRL's head knows them all.
_LOGIT_SETTINGS = (
    "final_logit_softcapping logit_scale output_multiplier lm_head_multiplier logits_scaling"
).split()


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a batch that the model gets."""
    return {name: cells for name, cells in batch.items() if name not in _OF_ROWS}


def add_labelled_head(model: Any, *, cpu_kernels: bool = True) -> None:
    """Give a causal model `model(…, labels=…, fused_lm_head=True)` → per-token log-probabilities.

    As TRL's `add_fused_lm_head`, which is used on a GPU (where it leaves positions out too), and
    for architectures that change their logits.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and cpu_kernels:
        from tuneline.training.loop.cpu_kernels import fuse_lora

        fuse_lora(model)
    if not on_cpu or any(getattr(model.config, name, None) for name in _LOGIT_SETTINGS):
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
        return
    from tuneline.training.loop.cpu_kernels import (
        can_share_prefixes,
        hidden_states,
        lay_out,
        use_row_attention,
    )

    plain_forward = model.forward
    shares = cpu_kernels and can_share_prefixes(model)
    if shares:
        use_row_attention(model)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != IGNORED
        if shares:
            layout = lay_out(kwargs["input_ids"], kwargs["attention_mask"])
            scored = hidden_states(self.base_model, layout)[layout.places[:, :-1][mask]]
        else:
            scored = self.base_model(*args, **kwargs).last_hidden_state[:, :-1][mask]
        return _scored(self.get_output_embeddings(), scored, labels, mask)

    model.forward = types.MethodType(forward, model)


# With fewer rows MKL sums the gradient over the vocabulary one by one: with the 262,144 tokens of
# Gemma 3, gradients are 2e-3 off, with rows of zeros added 3e-6. Reading the head takes the time.
_LEAST_HEAD_ROWS = 16


def _scored(head: Any, hidden: Any, labels: Any, mask: Any) -> dict[str, Any]:
    import torch

    count = len(hidden)
    added = max(0, _LEAST_HEAD_ROWS - count)
    logits = head(torch.nn.functional.pad(hidden, (0, 0, 0, added)))[:count].float()
    found = -torch.nn.functional.cross_entropy(logits, labels[mask], reduction="none")
    # masked_scatter keeps a batch without labels connected to the model.
    log_probs = found.new_zeros(mask.shape).masked_scatter(mask, found)
    return {"log_probs": log_probs, "label_mask": mask}


def _token_weights(batch: Mapping[str, Any]) -> Any:
    """Return the weight of each predicted token, that of its row; see `collate`."""
    weight = batch["weight"]
    return weight[batch["seq_idx"][:, 1:]] if "seq_idx" in batch else weight[:, None]


def weighted_sum(outputs: Any, batch: Mapping[str, Any]) -> Any:
    """Sum the negative log-likelihoods of a batch, in nats, each token with the weight of its row.

    `log_probs` have the shape (rows or 1, positions), and are zero where there is no label.
    """
    log_probs = outputs["log_probs"]
    return -(log_probs * _token_weights(batch).to(log_probs)).sum()


def target_weight(batches: Sequence[Mapping[str, Any]]) -> Any:
    """Sum the weights of the learned tokens of several batches, the divisor of their loss."""
    return sum(
        ((batch["labels"][:, 1:] != IGNORED) * _token_weights(batch)).sum() for batch in batches
    )


def row_losses(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    batch: int = EVAL_BATCH,
    pad_id: int,
    device: str,
    precision: Precision,
    group: ProcessGroup = ALONE,
) -> RowLosses:
    """Measure the loss of rows, in their order, without gradients and without dropout.

    The processes of a group share the batches, and all of them get all losses.
    """
    import torch

    was_training = model.training
    model.eval()
    sums = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    try:
        with torch.no_grad(), autocast(torch, device, precision):
            for indices, counts in group.share(batches):
                inputs = as_batch(torch, [rows[i] for i in indices], pad_id)
                inputs = {name: cells.to(device) for name, cells in model_inputs(inputs).items()}
                outputs = model(**inputs, use_cache=False, fused_lm_head=True)
                if counts:
                    for i, log_probs in zip(indices, outputs["log_probs"], strict=True):
                        sums[i] = -float(log_probs.double().sum())
    finally:
        model.train(was_training)
    return RowLosses(
        # Each row was measured once, so that the sum over processes is exact.
        tuple(group.sum(sums)),
        tuple(row.targets for row in rows),
        tuple(row.weight for row in rows),
    )


@dataclass(frozen=True)
class Validation:
    """Validation rows, and the base and padding that measuring a loss on them takes."""

    rows: list[EncodedRow]
    base: Path
    pad_id: int
    device: str
    plan: Plan
    config: TrainingConfig

    @classmethod
    def of(cls, ctx: StepContext) -> Validation:
        """Fetch and tokenise the validation rows of a run, and set torch up as training did."""
        plan, config, data = PLAN.read(ctx), ctx.config.training, ctx.config.data
        torch = load_torch(plan.threads, config.seed)
        base = base_of(ctx)
        tokenizer = load_tokenizer(base.path)
        dataset = DATASET.fetch(ctx)
        rows = encode_split(dataset, "validation", tokenizer, data.target_format, data.max_tokens)
        return cls(rows, base.path, pad_token(tokenizer), device_of(torch), plan, config)

    def load(self) -> Any:
        """Load the base as training held it."""
        return load_base(
            self.base, self.device, qlora=self.config.qlora, precision=self.plan.precision
        )

    def load_exact(self) -> Any:
        """Load the base in float32."""
        return load_unquantised(self.base).to(self.device)

    def losses(self, model: Any, *, batch: int = EVAL_BATCH) -> RowLosses:
        """Measure the loss of every row; the model gets the head that training uses."""
        # With the same kernels as training: in bf16 another order of roundings is another loss.
        add_labelled_head(model, cpu_kernels=self.config.cpu_kernels)
        device, precision = self.device, self.plan.precision
        return row_losses(
            model, self.rows, batch=batch, pad_id=self.pad_id, device=device, precision=precision
        )

    def losses_of_adapter(self, folder: Path) -> RowLosses:
        """Measure the loss of every row with an adapter on a freshly loaded base."""
        return self.losses(load_adapter(self.load(), folder))
