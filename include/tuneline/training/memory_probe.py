"""Measure, in a process of its own, what the memory model predicted.

    python -m tuneline.training.memory_probe SPEC.json RESULT.json

A fresh process has a clean peak. It predicts, then takes two optimiser steps of
the real trainer, the first on the longest rows of the dataset (as training does),
the second on short ones with the optimiser's state in place, reads the peak of its
resident memory (of the GPU's, where there is one), and compares accumulated
gradients with those of one large batch.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuneline.config import TrainingConfig


def measure_step(spec: dict[str, Any]) -> dict[str, Any]:
    """Predict micro-batches, largest first, and measure the first that should fit.

    Args:
        spec: `sizes` to try and what training needs; written by `gradient_accumulation.run`.
            Where no prediction fits, the smallest is measured.

    Returns:
        `device`, `precision`, `limit`, `limit_source` and `tried`: one entry per size that was
        predicted, the last one measured.
    """
    from tuneline.training.compute import choose_precision, device_of, load_torch

    config = TrainingConfig.model_validate(spec["training"])
    torch = load_torch(spec["threads"], config.seed)
    from tuneline.models import load_tokenizer
    from tuneline.training.accumulation_check import compare, pick_rows
    from tuneline.training.base_weights import LoraSettings, attach_lora, load_base
    from tuneline.training.memory import largest_shape, predict
    from tuneline.training.memory_limit import memory_limit
    from tuneline.training.trainer import LabelledTokenTrainer, TrainerSettings
    from tuneline.training.training_rows import encode_split, pad_token

    device = device_of(torch)
    precision = choose_precision(config, device)
    base = Path(spec["base"])
    lora = LoraSettings.model_validate(spec["lora"])
    tokenizer = load_tokenizer(base)
    rows = encode_split(
        Path(spec["dataset"]), "train", tokenizer, spec["target_format"], spec["max_tokens"]
    )
    lengths, targets = [len(r.ids) for r in rows], [r.targets for r in rows]
    limit, source = memory_limit(torch, config.memory_limit_gib, spec["pod_memory"])
    if device == "cpu" and spec["processes"] > 1:
        # Each GPU has a memory of its own; the processes of a pod without share the pod's.
        limit //= spec["processes"]
        source += f", shared by {spec['processes']} processes"
    runtime = _peak(torch, device)
    tried = []
    for size in spec["sizes"]:
        shape = largest_shape(lengths, targets, size)
        parts = predict(
            base,
            lora,
            shape,
            precision=precision,
            qlora=config.qlora,
            checkpointing=config.gradient_checkpointing,
        )
        total = parts.total + runtime
        predicted = {"parts": asdict(parts), "runtime": runtime, "total": total}
        tried.append({"micro_batch": size, "shape": asdict(shape), "predicted": predicted})
        if total <= limit:
            break
    size = tried[-1]["micro_batch"]
    model = load_base(base, device, qlora=config.qlora, precision=precision)
    ordered = sorted(rows, key=lambda r: (-len(r.ids), r.row_id))
    longest = (ordered + [ordered[0]] * size)[:size]
    trainer = LabelledTokenTrainer(
        model=attach_lora(model, lora),
        tokenizer=tokenizer,
        settings=TrainerSettings(
            output=Path(spec["scratch"]),
            micro_batch=size,
            accumulation=1,
            steps=2,
            precision=precision,
            device=device,
            pad_id=pad_token(tokenizer),
            eval_batch=size,
        ),
        config=config,
        rows=longest + [ordered[-1]] * size,
        validation=[],
    )
    trainer.train()
    measured = _peak(torch, device)
    comparison = compare(trainer, pick_rows(rows), pad_token(tokenizer))
    tried[-1] |= {
        "measured": measured,
        "step_seconds": trainer.clock.first,
        "tokens_per_second": sum(len(r.ids) for r in longest) / trainer.clock.first,
        "accumulation": asdict(comparison),
    }
    return {
        "device": device,
        "precision": precision,
        "limit": limit,
        "limit_source": source,
        "tried": tried,
    }


def _peak(torch: Any, device: str) -> int:
    """Peak bytes of this process so far."""
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    found = measure_step(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
