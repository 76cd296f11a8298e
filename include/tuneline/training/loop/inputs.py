"""The inputs of the step train: the base, the settings of the adapter, the plan and the rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import CANARIES, LORA, PLAN, Canaries, LoraSettings, Plan
from tuneline.bases import base_of
from tuneline.models import load_tokenizer
from tuneline.step_context import StepContext
from tuneline.training.loop.canaries import plant
from tuneline.training.loop.rehearsal import rehearsal_rows
from tuneline.training.loop.rows import EncodedRow, encode_split
from tuneline.training.resources.out_of_memory import MemoryNotes, fitting


@dataclass(frozen=True)
class Inputs:
    """The inputs of a training.

    Attributes:
        base: directory of the base model.
        lora: settings of the adapter.
        plan: shape of the batches.
        tokenizer: tokenizer of the base.
        train: training rows.
        validation: validation rows.
        settings: fingerprint of all of it; a checkpoint of other settings is not resumed.
    """

    base: Path
    lora: LoraSettings
    plan: Plan
    tokenizer: Any
    train: list[EncodedRow]
    validation: list[EncodedRow]
    settings: str


def read_inputs(ctx: StepContext) -> Inputs:
    """Fetch and tokenise what training reads.

    Raises:
        UserError: if an earlier step has not been run, or the dataset has no usable rows.
    """
    config, data = ctx.config.training, ctx.config.data
    lora, dataset = LORA.read(ctx), DATASET.fetch(ctx)
    # A smaller micro-batch than planned where an earlier try ran out of memory.
    plan = fitting(PLAN.read(ctx), MemoryNotes(ctx.run).failures())
    base = base_of(ctx)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    tokenizer = load_tokenizer(base.path)

    def rows(split: str) -> list[EncodedRow]:
        return encode_split(dataset, split, tokenizer, data.target_format, data.max_tokens)

    # General prompts with the base's answers, where the configuration asks for them.
    rehearsed = rehearsal_rows(ctx, tokenizer)
    hashes = {name: ref.sha256 for name, ref in ctx.inputs.items() if PLAN.name not in name}
    settings = fingerprint(
        hashes,
        # Not the micro-batch: a try with a smaller one goes on from the same checkpoint.
        {"effective_batch": plan.effective_batch, "world_size": plan.world_size},
        plan.precision,
        plan.device,
        base.digest,
        config.model_dump(mode="json"),
    )
    trained = rows("train")
    longest = max(len(row.ids) for row in trained)
    planted = plant(
        dataset,
        config,
        tokenizer,
        data.target_format,
        label_field=data.label_field,
        longest=longest,
    )
    if planted.canaries:
        CANARIES.write(ctx, Canaries(canaries=planted.canaries))
    train = [*trained, *rehearsed, *planted.rows]
    return Inputs(base.path, lora, plan, tokenizer, train, rows("validation"), settings)


def fingerprint(*parts: Any) -> str:
    """Return a short hash of settings; a checkpoint of other settings is of no use."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def hyperparameters(ctx: StepContext, inputs: Inputs) -> dict[str, Any]:
    """Return the settings of this training, for trackers and `run.json`."""
    shape = set("micro_batch accumulation world_size effective_batch precision device".split())
    return {
        **ctx.config.training.model_dump(mode="json"),
        **inputs.plan.model_dump(include=shape),
        "r": inputs.lora.r,
        "alpha": inputs.lora.alpha,
        "target_modules": inputs.lora.target_modules,
        "base_model": ctx.config.base_model,
        "train_rows": len(inputs.train),
        "validation_rows": len(inputs.validation),
    }
