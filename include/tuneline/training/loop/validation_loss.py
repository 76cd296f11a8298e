"""Measure validation loss as training does, for the items that check training."""

from __future__ import annotations

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
from tuneline.training.loop.base_weights import load_adapter, load_base, load_unquantised
from tuneline.training.loop.compute import device_of, load_torch
from tuneline.training.loop.rows import EncodedRow, encode_split, pad_token
from tuneline.training.loop.token_loss import add_labelled_head, row_losses


@dataclass(frozen=True)
class Validation:
    """Validation rows and everything that measuring a loss on them takes.

    Attributes:
        rows: validation rows, tokenised.
        base: directory of the base model.
        pad_id: token id of the padding.
        device: "cpu" or "cuda".
        plan: plan of the training.
        config: settings of the training.
    """

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

    def losses(self, model: Any) -> RowLosses:
        """Measure the loss of every row; the model gets the head that training uses."""
        # With the same kernels as training: in bf16 another order of roundings is another loss.
        add_labelled_head(
            model, cpu_kernels=self.config.cpu_kernels, packed=self.plan.packing.packed
        )
        return row_losses(
            model,
            self.rows,
            pad_id=self.pad_id,
            device=self.device,
            precision=self.plan.precision,
        )

    def losses_of_adapter(self, folder: Path) -> RowLosses:
        """Measure the loss of every row with an adapter on a freshly loaded base."""
        return self.losses(load_adapter(self.load(), folder))
