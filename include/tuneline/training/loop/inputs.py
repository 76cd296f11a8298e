"""What the step train reads: the base, the adapter's settings, the plan and the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.run import StepContext
from tuneline.training.loop.base_weights import LoraSettings
from tuneline.training.loop.live_checkpoints import fingerprint
from tuneline.training.loop.rehearsal import rehearsal_rows
from tuneline.training.loop.rows import EncodedRow, encode_split, run_order
from tuneline.training.memory.out_of_memory import MemoryNotes, fitting


@dataclass(frozen=True)
class Inputs:
    """What training reads.

    Attributes:
        base: directory of the base model.
        lora: the adapter's settings.
        plan: `plan.json` of gradient_accumulation.
        tokenizer: of the base.
        train: training rows.
        validation: validation rows.
        settings: fingerprint of all of it; a checkpoint of other settings is not resumed.
    """

    base: Path
    lora: LoraSettings
    plan: Mapping[str, Any]
    tokenizer: Any
    train: list[EncodedRow]
    validation: list[EncodedRow]
    settings: str


def read_inputs(ctx: StepContext) -> Inputs:
    """Fetch and tokenise what training needs.

    Raises:
        UserError: an earlier step has not been run, or the dataset has no usable rows.
    """
    from tuneline.models import load_tokenizer, resolve

    lora_file = ctx.input("lora_selection", "lora.json")
    plan_file = ctx.input("gradient_accumulation", "plan.json")
    dataset = ctx.input("distribution_balancing", "dataset.parquet")
    base = resolve(ctx.config.base_model, log=ctx.log)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    plan = fitting(json.loads(plan_file.read_text()), MemoryNotes(ctx.run).failures())
    tokenizer = load_tokenizer(base.path)
    data = ctx.config.data
    rehearsed = rehearsal_rows(ctx, tokenizer)

    def rows(split: str) -> list[EncodedRow]:
        return encode_split(dataset, split, tokenizer, data.target_format, data.max_tokens)

    # Not the micro-batch: a try with a smaller one goes on from the same checkpoint.
    shape = {name: plan[name] for name in ("effective_batch", "world_size")}
    hashes = {name: ref.sha256 for name, ref in ctx.inputs.items() if "plan.json" not in name}
    return Inputs(
        base=base.path,
        lora=LoraSettings.model_validate_json(lora_file.read_text()),
        plan=plan,
        tokenizer=tokenizer,
        train=[*rows("train"), *rehearsed],
        validation=rows("validation"),
        settings=fingerprint(
            hashes,
            shape,
            plan["precision"],
            plan["device"],
            base.digest,
            ctx.config.training.model_dump(mode="json"),
        ),
    )


def ordered_rows(inputs: Inputs, steps: int, seed: int) -> list[EncodedRow]:
    """The training rows in the order in which the run sees them."""
    order = run_order(
        [len(row.ids) for row in inputs.train],
        inputs.plan["effective_batch"],
        steps,
        seed,
        [row.rehearsal for row in inputs.train],
    )
    return [inputs.train[i] for i in order]


def hyperparameters(ctx: StepContext, inputs: Inputs) -> dict[str, Any]:
    """What the tracker and the manifest show of this training."""
    names = ("micro_batch", "accumulation", "world_size", "effective_batch", "precision", "device")
    return {
        **ctx.config.training.model_dump(mode="json"),
        **{name: inputs.plan[name] for name in names},
        "r": inputs.lora.r,
        "alpha": inputs.lora.alpha,
        "target_modules": inputs.lora.target_modules,
        "base_model": ctx.config.base_model,
        "train_rows": len(inputs.train),
        "validation_rows": len(inputs.validation),
    }
