"""The systems of the training benchmark: our trainer and TRL's.

Each takes the same optimiser steps on the same rows. The first few are not timed; the clock then
runs from the beginning of a step to the end of training, all that lies between steps included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from benchmarks.contest.trial import Job, Trial, version_of
from benchmarks.training.rows import batches_of, read_rows
from tuneline import __version__

# Units of what a trial scores.
UNITS = {
    "tokens_per_s": "1/s",
    "tokens_per_cpu_s": "1/s",
    "peak_memory": "MiB",
    "training_loss": "nats",
    "validation_loss": "nats",
}


class StepWindow(TrainerCallback):
    """Takes the time of all steps but the first `warm_up`, and of what lies between them."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._began: tuple[float, float] | None = None
        self.seconds = self.cpu_seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if self._began is None and state.global_step >= self._warm_up:
            self._began = time.perf_counter(), time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        if self._began is None:
            raise ValueError(f"training ended after {state.global_step} steps, all of the warm-up")
        self.seconds = time.perf_counter() - self._began[0]
        self.cpu_seconds = time.process_time() - self._began[1]


def tuneline(job: Job) -> Trial:
    """Our trainer by the product's own code, without callbacks that watch it."""
    from tuneline.training.loop.model import load_torch

    load_torch(job["threads"], job["seed"])
    from tuneline.models import load_tokenizer
    from tuneline.training.resources.probe import TrainingSetup

    base = Path(job["base"])
    batches = read_batches(job)
    setup = TrainingSetup(
        base=base,
        lora=lora_of(job),
        config=config_of(job),
        precision=job["precision"],
        device=job["device"],
        scratch=Path(job["scratch"]) / "tuneline",
    )
    trainer = setup.trainer(setup.model(), load_tokenizer(base), batches)
    timed = sum(len(row.ids) for batch in batches[job["warm_up"] :] for row in batch)
    return _trial(job, trainer, __version__, lambda log: timed)


def read_batches(job: Job) -> list[Any]:
    """Return the optimiser steps of a job, in the order of the product."""
    return batches_of(read_rows(job["rows"]), job["batch"], job["steps"], job["seed"])


def trl(job: Job) -> Trial:
    """TRL's SFTTrainer, set up as its documentation says, with a learning rate and LoRA as ours."""
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    transformers.set_seed(job["seed"])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from tuneline.models import load_tokenizer

    disable_progress_bars()
    taken = list(chain.from_iterable(read_batches(job)))
    trainer = SFTTrainer(
        model=job["base"],
        args=_trl_arguments(torch, job),
        train_dataset=Dataset.from_dict(
            {"input_ids": [list(r.ids) for r in taken], "labels": [r.labels for r in taken]}
        ),
        processing_class=load_tokenizer(Path(job["base"])),
        peft_config=LoraConfig(
            r=job["r"],
            lora_alpha=job["alpha"],
            lora_dropout=0.0,
            target_modules=job["target_modules"],
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )

    def tokens(log: list[Any]) -> float:
        # TRL counts what its masks hold: tokens without padding, as we count them.
        return float(log[-1]["num_tokens"] - log[job["warm_up"] - 1]["num_tokens"])

    return _trial(job, trainer, version_of("trl", "transformers", "torch"), tokens)


def _trial(job: Job, trainer: Any, version: str, tokens: Any) -> Trial:
    import torch

    from tuneline.machine.memory import peak_memory

    window = StepWindow(job["warm_up"])
    trainer.add_callback(window)

    def work(_: Sequence[Any]) -> int:
        trainer.train()
        return peak_memory(torch, job["device"])

    def score(peak: int) -> dict[str, float]:
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        last_third = log[-max(1, len(log) // 3) :]
        seen = tokens(log)
        scores = {
            "tokens_per_s": seen / window.seconds,
            "tokens_per_cpu_s": seen / window.cpu_seconds,
            "peak_memory": peak / (1 << 20),
            "training_loss": fmean(float(entry["loss"]) for entry in last_third),
        }
        if job["validation"]:
            scores["validation_loss"] = validation_loss(trainer.model, job)
        return scores

    return Trial(version, range(job["steps"]), work, score, warm_up=False)


def validation_loss(model: Any, job: Job) -> float:
    """Mean loss of a learned token of the validation rows, nats.

    The adapter is put on a fresh base in float32 and runs row by row through transformers alone:
    neither our head nor TRL's, neither packing nor padding has a part in it.
    """
    import torch

    from tuneline.training.loop.model import load_adapter, load_unquantised

    folder = Path(job["scratch"]) / "judged"
    model.save_pretrained(folder)
    judged = load_adapter(load_unquantised(Path(job["base"])), folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in read_rows(job["validation"]):
            logits = judged(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += row.targets
    return total / count


def config_of(job: Job) -> Any:
    """Return the training section of the configuration for a job."""
    from tuneline.config import TrainingConfig

    return TrainingConfig(
        dropout=0.0,
        effective_batch=job["batch"],
        gradient_checkpointing=job["checkpointing"],
        **{name: job[name] for name in ("r", "alpha", "learning_rate", "qlora", "seed")},
    )


def lora_of(job: Job) -> Any:
    """Return the adapter of a job."""
    from tuneline.artifacts.training import LoraSettings

    settings = {name: job[name] for name in ("r", "alpha", "target_modules")}
    return LoraSettings(dropout=0.0, rslora=False, dora=False, **settings)


def _trl_arguments(torch: Any, job: Job) -> Any:
    """Return the settings of TRL; all others keep TRL's own value."""
    from trl.trainer.sft_config import SFTConfig

    from tuneline.training.loop.model import nf4_config

    bf16 = job["precision"] == "bf16"
    # Without a type TRL takes that of the weights on disk, which is bfloat16.
    weights: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    if job["qlora"]:
        weights["quantization_config"] = nf4_config()
    if job.get("attention"):
        weights["attn_implementation"] = job["attention"]
    config = config_of(job)
    return SFTConfig(
        output_dir=str(Path(job["scratch"]) / "trl"),
        model_init_kwargs=weights,
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=1,
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type=config.schedule,
        warmup_steps=int(config.warmup_share * job["steps"]),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=bf16,
        gradient_checkpointing=job["checkpointing"],
        train_sampling_strategy=job["sampling"],
        packing=job.get("packing", False),
        max_length=job.get("max_length"),
        use_liger_kernel=job.get("liger", False),
        use_cpu=job["device"] == "cpu",
        dataloader_pin_memory=job["device"] == "cuda",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        data_seed=job["seed"],
    )
