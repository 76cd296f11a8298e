"""Measure the memory and the speed of a micro-batch in a process of its own.

    python -m tuneline.training.memory.probe SPEC.json RESULT.json

A fresh process has a clean peak. The real model takes single steps on growing micro-batches of
the dataset's longest rows, each predicted before it is measured (see `predict`). With the
micro-batch that is taken, the real trainer then makes steps that stand for the run's, to time
it, and a validation pass. Last, accumulated gradients are compared with those of one large batch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tuneline.artifacts.training import LoraSettings, Packing
from tuneline.config import TrainingConfig
from tuneline.errors import first_line
from tuneline.training.loop.compute import Precision
from tuneline.training.loop.rows import EncodedRow, tail
from tuneline.training.memory.predict import Climb, Measured, Peak, Prediction

# Micro-batches that are timed, after the first, which is slow: its memory is new.
TIMED = 5
# Shares of the longest row from which the peak of a whole one is predicted.
PARTS = (0.25, 0.5)


@dataclass(frozen=True)
class Setup:
    """The model and settings that a micro-batch is tried with.

    Attributes:
        base: directory of the base model.
        lora: the adapter.
        config: the training section of the configuration.
        precision: arithmetic of the steps.
        device: "cpu" or "cuda".
        scratch: folder for the trainer.
        packing: how the rows of a micro-batch are fed to the model.
    """

    base: Path
    lora: LoraSettings
    config: TrainingConfig
    precision: Precision
    device: str
    scratch: Path
    packing: Packing = field(default_factory=Packing)

    def model(self) -> Any:
        """Load the real model with its adapter."""
        from tuneline.training.loop.base_weights import attach_lora, load_base

        qlora = self.config.qlora
        base = load_base(self.base, self.device, qlora=qlora, precision=self.precision)
        return attach_lora(base, self.lora)

    def packing_for(
        self, model: Any, rows: Sequence[EncodedRow], tokenizer: Any, processes: int
    ) -> Setup:
        """Return this setup with the packing that was decided for the model.

        Args:
            model: the model of `model()`.
            rows: rows of the dataset.
            tokenizer: tokenizer of the base.
            processes: processes that will train together.
        """
        from tuneline.training.loop.rows import pad_token
        from tuneline.training.packing.check import choose_packing

        packing = choose_packing(
            model,
            rows,
            setting=self.config.packing,
            share=self.config.effective_batch / processes * fmean(len(row.ids) for row in rows),
            device=self.device,
            precision=self.precision,
            pad_id=pad_token(tokenizer),
        )
        return replace(self, packing=packing)

    def trainer(self, model: Any, tokenizer: Any, batches: Sequence[Sequence[EncodedRow]]) -> Any:
        """Make a trainer whose steps are the given micro-batches."""
        from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

        rows = [row for batch in batches for row in batch]
        numbers = iter(range(len(rows)))
        packs = [[[[next(numbers) for _ in batch]]] for batch in batches]
        return LabelledTokenTrainer(
            model=model,
            tokenizer=tokenizer,
            settings=TrainerSettings(
                output=self.scratch,
                micro_batch=len(batches[0]),
                accumulation=1,
                steps=len(batches),
                precision=self.precision,
                device=self.device,
                packing=self.packing,
            ),
            config=self.config,
            rows=rows,
            validation=[],
            packs=packs if self.packing.packed else None,
        )


def longest_rows(rows: Sequence[EncodedRow], count: int) -> list[EncodedRow]:
    """Return the longest rows; a dataset with fewer repeats its longest."""
    ordered = sorted(rows, key=lambda r: (-len(r.ids), r.row_id))
    return (ordered + [ordered[0]] * count)[:count]


def tokens_at_once(model: Any, rows: Sequence[EncodedRow], *, packed: bool) -> int:
    """Count the tokens that the model sees for a micro-batch.

    Rows are padded to the longest if they are not packed; where `packed_rows` is in use they are
    laid end to end, and a shared prefix counts once.
    """
    if packed:
        return sum(len(row.ids) for row in rows)
    import torch

    from tuneline.training.cpu.packed_rows import lay_out, packs
    from tuneline.training.loop.rows import as_batch

    batch = as_batch(torch, rows, 0)
    if packs(model.get_base_model()):
        return int(lay_out(batch["input_ids"], batch["attention_mask"]).ids.numel())
    return int(batch["input_ids"].numel())


def find_micro_batch(
    setup: Setup,
    trainer: Any,
    rows: Sequence[EncodedRow],
    sizes: Sequence[int],
    *,
    limit: int,
    about_to: Callable[[int], None],
) -> tuple[Measured, Climb]:
    """Measure growing micro-batches of the longest rows.

    Args:
        setup: what is trained.
        trainer: a trainer whose `train` was run for one step, so that it has an optimiser.
        rows: rows of the dataset.
        sizes: micro-batches to choose among.
        limit: memory that a step may take, bytes.
        about_to: called before each step with the smallest of `sizes` that is at least as
            large: running out of memory may end the process.

    Returns:
        The micro-batch that was measured last, and the way there.
    """
    import torch

    from tuneline.machine.memory import peak_memory, restart_peak
    from tuneline.training.loop.rows import as_batch

    def take_step(batch: Sequence[EncodedRow]) -> int:
        inputs = as_batch(torch, batch, trainer.pad_id)
        inputs = {name: tensor.to(setup.device) for name, tensor in inputs.items()}
        # What loading the model took, and what the step before left, would hide a small step.
        restart_peak(torch, setup.device)
        items = trainer._get_num_items_in_batch([inputs], torch.device(setup.device))
        trainer.training_step(trainer.model, inputs, items)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return peak_memory(torch, setup.device)

    def measure(count: int) -> int:
        about_to(min(size for size in sizes if size >= count))
        return take_step(longest_rows(rows, count))

    def laid(batch: Sequence[EncodedRow]) -> int:
        return tokens_at_once(trainer.model, batch, packed=setup.packing.packed)

    longest = longest_rows(rows, 1)[0]
    parts = [[tail(longest, share)] for share in PARTS]
    peaks = [Peak(laid(part), take_step(part)) for part in parts]
    climb = Climb(limit, lambda count: laid(longest_rows(rows, count)), measure, peaks)
    return climb.up(sizes), climb


def measure_step(spec: Mapping[str, Any], result: Path) -> dict[str, Any]:
    """Find the largest micro-batch that fits, time it, and check accumulation.

    Args:
        spec: `sizes` to try and what training needs; written by `gradient_accumulation.run`.
            Where no prediction fits, the smallest is measured.
        result: file for the answer; what is known before a measurement is left there too,
            since running out of memory may end the process.

    Returns:
        `device`, `precision`, `packing`, `limit`, `limit_source` and `tried`: one entry per size
        that was predicted not to fit, then the one that was measured, or that ran
        `out_of_memory`.
    """
    began = time.monotonic()
    from tuneline.training.loop.compute import choose_precision, device_of, load_torch

    config = TrainingConfig.model_validate(spec["training"])
    torch = load_torch(spec["threads"], config.seed)
    import tuneline.training.loop.trainer  # noqa: F401  # its libraries belong to the runtime
    from tuneline.machine.memory import is_out_of_memory, peak_memory
    from tuneline.models import load_tokenizer
    from tuneline.run import Run
    from tuneline.training.loop.rows import encode_split
    from tuneline.training.memory.limit import memory_limit
    from tuneline.training.memory.out_of_memory import MemoryNotes

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
    answer: dict[str, Any] = {
        "device": device,
        "precision": setup.precision,
        "limit": limit,
        "limit_source": source,
        "tried": [],
    }
    notes = MemoryNotes(Run.open(spec["run"]))
    sizes = sorted(spec["sizes"])

    def about_to(size: int) -> None:
        answer["tried"] = [{"micro_batch": size}]
        result.write_text(json.dumps(answer))
        notes.trying("gradient_accumulation", size)

    runtime = peak_memory(torch, device)
    try:
        about_to(sizes[0])
        model = setup.model()
        startup = time.monotonic() - began
        loaded = peak_memory(torch, device)
        setup = setup.packing_for(model, rows, tokenizer, spec["world_size"])
        answer["packing"] = setup.packing.model_dump(mode="json")
        sizes = _worth_it(sizes, rows, setup.packing.limit)
        first = setup.trainer(model, tokenizer, [[tail(longest_rows(rows, 1)[0], PARTS[0])]])
        first.train()
        taken, climb = find_micro_batch(setup, first, rows, sizes, limit=limit, about_to=about_to)
        answer["tried"] = [
            *(
                {"micro_batch": size, "predicted": _described(climb.predict(size), runtime)}
                for size in reversed(sizes)
                if size > taken.rows
            ),
            {
                "micro_batch": taken.rows,
                "tokens": climb.peaks[-1].tokens,
                "pack_tokens": climb.peaks[-1].tokens if setup.packing.packed else 0,
                "longest_row": max(len(row.ids) for row in rows),
                "predicted": _described(taken.predicted, runtime),
                "peaks": [asdict(peak) for peak in climb.peaks],
            },
        ]
        result.write_text(json.dumps(answer))
        # The optimiser of this trainer must not count beside that of the next one.
        del first, climb
        answer["tried"][-1] |= _timed(
            setup,
            model,
            tokenizer,
            rows=rows,
            validation=validation,
            spec=spec,
            size=taken.rows,
        )
        answer["tried"][-1]["speed"]["startup_seconds"] = startup
        highest = max(loaded, taken.memory, answer["tried"][-1]["measured"])
        answer["tried"][-1]["measured"] = highest
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        answer["tried"][-1]["out_of_memory"] = first_line(error)
    return answer


def _worth_it(sizes: list[int], rows: Sequence[EncodedRow], limit: int | None) -> list[int]:
    """Return the micro-batches whose packs are within the limit of their attention, or the least.

    Args:
        sizes: micro-batches, smallest first.
        rows: rows of the dataset.
        limit: tokens of a pack; None for no limit.
    """
    if limit is None:
        return sizes
    kept = [s for s in sizes if sum(len(row.ids) for row in longest_rows(rows, s)) <= limit]
    return kept or sizes[:1]


def _described(predicted: Prediction, runtime: int) -> dict[str, Any]:
    """Describe a prediction, split into what the process held before training and the rest."""
    parts = {
        "runtime": runtime,
        "model": predicted.fixed - runtime,
        "micro_batch": predicted.growing,
    }
    return {"parts": parts, "total": predicted.total}


def _timed(
    setup: Setup,
    model: Any,
    tokenizer: Any,
    *,
    rows: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    spec: Mapping[str, Any],
    size: int,
) -> dict[str, Any]:
    """Time the trainer's steps and a validation pass; read the peak; check accumulation."""
    import torch

    from tuneline.machine.memory import peak_memory, restart_peak
    from tuneline.training.budget.work import plan_work
    from tuneline.training.cpu.packed_rows import packs
    from tuneline.training.loop.token_loss import EVAL_BATCH
    from tuneline.training.memory.accumulation_check import compare, pick_rows

    packing = setup.packing
    pack_tokens = tokens_at_once(model, longest_rows(rows, size), packed=True)
    work, typical, shapes = plan_work(
        rows,
        validation,
        tokenizer,
        spec,
        micro_batch=size,
        pack_tokens=pack_tokens if packing.packed else 0,
        end_to_end=not packing.packed and packs(model.get_base_model()),
        samples=TIMED,
    )
    trainer = setup.trainer(model, tokenizer, [longest_rows(rows, size), *typical])
    restart_peak(torch, setup.device)
    trainer.train()
    stepped = peak_memory(torch, setup.device)
    trainer.validation = longest_rows(validation, min(EVAL_BATCH, len(validation)))
    trainer.evaluate()
    trainer.validation = validation[:: max(1, len(validation) // EVAL_BATCH)]
    passed = trainer.evaluate()
    measured = peak_memory(torch, setup.device)
    comparison = compare(trainer, pick_rows(rows))
    return {
        "measured_step": stepped,
        "measured": measured,
        "work": asdict(work),
        "batches": shapes,
        "speed": {
            "tokens": [sum(len(r.ids) for r in batch) for batch in typical],
            "seconds": trainer.clock.steps[1:],
            "validation_tokens": sum(len(r.ids) for r in trainer.validation),
            "validation_seconds": passed["eval_seconds"],
        },
        "accumulation": asdict(comparison),
    }


if __name__ == "__main__":
    path = Path(sys.argv[2])
    found = measure_step(json.loads(Path(sys.argv[1]).read_text()), path)
    path.write_text(json.dumps(found))
