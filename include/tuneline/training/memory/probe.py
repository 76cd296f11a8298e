"""Measure, in a process of its own, what the memory model predicted.

    python -m tuneline.training.memory.probe SPEC.json RESULT.json

A fresh process has a clean peak. It predicts, then takes steps of the real trainer: the first on
the longest rows of the dataset (as training does), the others on micro-batches that stand for the
run's, to time it. A validation pass follows, then the peak is read, and accumulated gradients
are compared with those of one large batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.config import TrainingConfig
from tuneline.errors import first_line
from tuneline.training.loop.compute import Precision

# Micro-batches that are timed, after the first, which is slow: its memory is new.
TIMED = 5


@dataclass(frozen=True)
class Setup:
    """What a micro-batch is tried on.

    Attributes:
        base: directory of the base model.
        lora: `lora.json`.
        config: of training.
        precision: of the arithmetic.
        device: "cpu" or "cuda".
        scratch: folder for the trainer.
    """

    base: Path
    lora: Any
    config: TrainingConfig
    precision: Precision
    device: str
    scratch: Path

    def predict(self, rows: Sequence[Any], validation: Sequence[Any]) -> Any:
        """The memory model's parts for a micro-batch."""
        from tuneline.training.memory.predict import predict

        return predict(
            self.base,
            self.lora,
            rows,
            precision=self.precision,
            device=self.device,
            qlora=self.config.qlora,
            checkpointing=self.config.gradient_checkpointing,
            validation=validation,
        )

    def trainer(self, tokenizer: Any, batches: Sequence[Sequence[Any]], *callbacks: Any) -> Any:
        """A trainer of the real model whose steps are the given micro-batches."""
        from tuneline.training.loop.base_weights import attach_lora, load_base
        from tuneline.training.loop.rows import pad_token
        from tuneline.training.loop.token_loss import EVAL_BATCH
        from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

        config = self.config
        model = load_base(self.base, self.device, qlora=config.qlora, precision=self.precision)
        return LabelledTokenTrainer(
            model=attach_lora(model, self.lora),
            tokenizer=tokenizer,
            settings=TrainerSettings(
                output=self.scratch,
                micro_batch=len(batches[0]),
                accumulation=1,
                steps=len(batches),
                precision=self.precision,
                device=self.device,
                pad_id=pad_token(tokenizer),
                eval_batch=EVAL_BATCH,
            ),
            config=config,
            rows=[row for batch in batches for row in batch],
            validation=[],
            callbacks=callbacks,
        )


def longest_rows(rows: Sequence[Any], count: int) -> list[Any]:
    """The longest rows; a dataset with fewer repeats its longest."""
    ordered = sorted(rows, key=lambda r: (-len(r.ids), r.row_id))
    return (ordered + [ordered[0]] * count)[:count]


def predict_sizes(
    setup: Setup,
    sizes: Sequence[int],
    rows: Sequence[Any],
    validation: Sequence[Any],
    *,
    runtime: int,
    limit: int,
) -> list[dict[str, Any]]:
    """What the memory model says of each size, up to the first that should fit.

    Args:
        setup: what is trained.
        sizes: micro-batches, largest first.
        rows: of the dataset.
        validation: the largest validation batch.
        runtime: bytes that the process holds before training.
        limit: bytes.
    """
    from tuneline.training.memory.predict import largest_shape

    lengths, targets = [len(r.ids) for r in rows], [r.targets for r in rows]
    tried: list[dict[str, Any]] = []
    for size in sizes:
        parts = setup.predict(longest_rows(rows, size), validation)
        total = parts.total + runtime
        predicted = {"parts": asdict(parts), "runtime": runtime, "total": total}
        shape = asdict(largest_shape(lengths, targets, size))
        tried.append({"micro_batch": size, "shape": shape, "predicted": predicted})
        if total <= limit:
            break
    return tried


def measure_step(spec: Mapping[str, Any], result: Path) -> dict[str, Any]:
    """Predict micro-batches, largest first, and measure the first that should fit.

    Args:
        spec: `sizes` to try and what training needs; written by `gradient_accumulation.run`.
            Where no prediction fits, the smallest is measured.
        result: where the answer goes; what is known before the measurement is left there too,
            since running out of memory may end the process.

    Returns:
        `device`, `precision`, `limit`, `limit_source` and `tried`: one entry per size that was
        predicted, the last one measured, or with `out_of_memory`.
    """
    began = time.monotonic()
    from tuneline.training.loop.compute import choose_precision, device_of, load_torch

    config = TrainingConfig.model_validate(spec["training"])
    torch = load_torch(spec["threads"], config.seed)
    import tuneline.training.loop.trainer  # noqa: F401  # its libraries belong to the runtime
    from tuneline.machine.peak_memory import peak_memory
    from tuneline.models import load_tokenizer
    from tuneline.run import Run
    from tuneline.training.budget.work import plan_work
    from tuneline.training.loop.base_weights import LoraSettings
    from tuneline.training.loop.rows import encode_split, pad_token
    from tuneline.training.loop.token_loss import EVAL_BATCH
    from tuneline.training.memory.accumulation_check import compare, pick_rows
    from tuneline.training.memory.limit import memory_limit
    from tuneline.training.memory.out_of_memory import MemoryNotes, is_out_of_memory

    device = device_of(torch)
    setup = Setup(
        base=Path(spec["base"]),
        lora=LoraSettings.model_validate(spec["lora"]),
        config=config,
        precision=choose_precision(config, device),
        device=device,
        scratch=Path(spec["scratch"]),
    )
    tokenizer = load_tokenizer(setup.base)
    rows, validation = (
        encode_split(
            Path(spec["dataset"]), split, tokenizer, spec["target_format"], spec["max_tokens"]
        )
        for split in ("train", "validation")
    )
    limit, source = memory_limit(torch, config.memory_limit_gib, spec["pod_memory"])
    if device == "cpu" and spec["processes"] > 1:
        # Each GPU has a memory of its own; the processes of a pod without share the pod's.
        limit //= spec["processes"]
        source += f", shared by {spec['processes']} processes"
    runtime = peak_memory(torch, device)
    widest = longest_rows(validation, min(EVAL_BATCH, len(validation)))
    tried = predict_sizes(setup, spec["sizes"], rows, widest, runtime=runtime, limit=limit)
    answer = {
        "device": device,
        "precision": setup.precision,
        "limit": limit,
        "limit_source": source,
        "tried": tried,
    }
    size = tried[-1]["micro_batch"]
    result.write_text(json.dumps(answer))
    MemoryNotes(Run.open(spec["run"])).trying("gradient_accumulation", size)
    work, typical = plan_work(rows, validation, tokenizer, spec, micro_batch=size, samples=TIMED)
    try:
        trainer = setup.trainer(tokenizer, [longest_rows(rows, size), *typical])
        startup = time.monotonic() - began
        trainer.train()
        trainer.validation = widest
        trainer.evaluate()
        trainer.validation = validation[:: max(1, len(validation) // EVAL_BATCH)]
        passed = trainer.evaluate()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tried[-1]["out_of_memory"] = first_line(error)
        return answer
    measured = peak_memory(torch, device)
    comparison = compare(trainer, pick_rows(rows), pad_token(tokenizer))
    tried[-1] |= {
        "measured": measured,
        "work": asdict(work),
        "speed": {
            "tokens": [sum(len(r.ids) for r in batch) for batch in typical],
            "seconds": trainer.clock.steps[1:],
            "validation_tokens": sum(len(r.ids) for r in trainer.validation),
            "validation_seconds": passed["eval_seconds"],
            "startup_seconds": startup,
        },
        "accumulation": asdict(comparison),
    }
    return answer


if __name__ == "__main__":
    path = Path(sys.argv[2])
    found = measure_step(json.loads(Path(sys.argv[1]).read_text()), path)
    path.write_text(json.dumps(found))
