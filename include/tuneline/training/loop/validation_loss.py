"""Measure validation loss the way training did, for the items that check training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.run import StepContext
from tuneline.training.loop.base_weights import load_adapter, load_base, load_unquantised
from tuneline.training.loop.compute import device_of, load_torch
from tuneline.training.loop.rows import EncodedRow, encode_split, pad_token
from tuneline.training.loop.token_loss import EVAL_BATCH, RowLosses, add_labelled_head, row_losses


@dataclass(frozen=True)
class Validation:
    """Validation rows and all that measuring a loss on them takes.

    Attributes:
        rows: tokenised.
        base: directory of the base model.
        pad_id: token id of the padding.
        device: cpu or cuda.
        plan: `plan.json` of gradient_accumulation.
    """

    rows: list[EncodedRow]
    base: Path
    pad_id: int
    device: str
    plan: Mapping[str, Any]

    @classmethod
    def of(cls, ctx: StepContext) -> Validation:
        """Fetch and tokenise the validation rows of a run, and set torch up as training did."""
        plan = json.loads(ctx.input("gradient_accumulation", "plan.json").read_text())
        torch = load_torch(plan["threads"], ctx.config.training.seed)
        from tuneline.models import load_tokenizer, resolve

        base = resolve(ctx.config.base_model, log=ctx.log)
        tokenizer = load_tokenizer(base.path)
        data = ctx.config.data
        rows = encode_split(
            ctx.input("distribution_balancing", "dataset.parquet"),
            "validation",
            tokenizer,
            data.target_format,
            data.max_tokens,
        )
        return cls(rows, base.path, pad_token(tokenizer), device_of(torch), plan)

    def load(self, *, qlora: bool) -> Any:
        """The base as training held it, with the head that scores learned tokens."""
        model = load_base(self.base, self.device, qlora=qlora, precision=self.plan["precision"])
        add_labelled_head(model)
        return model

    def load_exact(self) -> Any:
        """The base in float32."""
        model = load_unquantised(self.base).to(self.device)
        add_labelled_head(model)
        return model

    def losses(self, model: Any) -> RowLosses:
        """Loss of every row."""
        return row_losses(
            model,
            self.rows,
            batch=EVAL_BATCH,
            pad_id=self.pad_id,
            device=self.device,
            precision=self.plan["precision"],
        )

    def losses_of_adapter(self, folder: Path, *, qlora: bool) -> RowLosses:
        """Loss of every row with an adapter on a freshly loaded base."""
        model = load_adapter(self.load(qlora=qlora), folder)
        if self.device == "cpu":
            from tuneline.training.cpu.lora_products import fuse_lora

            # As the trainer does: in bf16 another order of roundings is another loss.
            fuse_lora(model)
        return self.losses(model)
