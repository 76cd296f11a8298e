"""TRL's SFTTrainer with small changes, each of them tested.

The loss is taken on learned tokens, each with the weight of its row, over the whole optimiser step,
and logged for the task's rows alone too. Rows come in the order of the run (`rows.run_order`),
packed by TRL's collator where the plan says so. Evaluation measures row by row, by the function
that checks it later. On a CPU `cpu_kernels` are put on.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tuneline.artifacts.training import HistoryEntry, Packing, finite_or_text
from tuneline.config import TrainingConfig
from tuneline.training.loop.model import (
    Precision,
    attention_for,
    attention_of,
    free_gathered_weights,
    trained_weights,
)
from tuneline.training.loop.processes import ALONE, ProcessGroup
from tuneline.training.loop.rows import EncodedRow, as_columns, collate, pad_token
from tuneline.training.loop.token_loss import (
    add_labelled_head,
    model_inputs,
    row_losses,
    target_weight,
    weighted_sum,
)


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of the trainer besides the run's training configuration.

    A forward pass has `micro_batch` rows, an optimiser step `accumulation` micro-batches.
    """

    output: Path
    micro_batch: int
    accumulation: int
    steps: int
    precision: Precision
    device: str
    packing: Packing = field(default_factory=Packing)
    eval_on_start: bool = False
    group: ProcessGroup = ALONE


class StepClock(TrainerCallback):
    """Times the optimiser steps of this process, in seconds."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.steps.append(time.monotonic() - self._started)


class TaskLoss:
    """Averages the loss of the task's tokens over the micro-batches of a step and all processes.

    Attributes:
        rows: rows of the micro-batches before the last `take`, those of rehearsal included.
    """

    def __init__(self, group: ProcessGroup = ALONE) -> None:
        self._group = group
        self._sum: Any = 0.0
        self._tokens: Any = 0.0
        self._rows = self.rows = 0

    def add(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Add a micro-batch, without its rehearsal rows."""
        self._rows += len(inputs["weight"])
        of_task = {**inputs, "weight": inputs["weight"] * ~inputs["rehearsal"]}
        with torch.no_grad():
            self._sum = self._sum + weighted_sum(outputs, of_task)
            self._tokens = self._tokens + target_weight([of_task])

    def take(self) -> float | None:
        """Return the mean since the last call, in nats; None if no row of the task was seen."""
        counts = [float(self._sum), float(self._tokens), float(self._rows)]
        total, tokens, rows = self._group.sum(counts)
        self._sum, self._tokens, self._rows, self.rows = 0.0, 0.0, 0, round(rows)
        return total / tokens if tokens else None


class LabelledTokenTrainer(SFTTrainer):
    """SFTTrainer whose loss and evaluation look at learned tokens only."""

    # `compute_loss` divides by the tokens of the whole step, so the trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        settings: TrainerSettings,
        config: TrainingConfig,
        rows: Sequence[EncodedRow],
        validation: Sequence[EncodedRow],
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Set TRL up for tokenised, masked rows in the order of the run."""
        self.settings = settings
        self.pad_id = pad_token(tokenizer)
        self.validation = list(validation)
        self.clock = StepClock()
        self._task_loss = TaskLoss(settings.group)
        self._started, self._before = time.monotonic(), 0.0
        self._tokens = list(itertools.accumulate(_step_tokens(rows, settings), initial=0))
        packed = settings.packing.packed
        super().__init__(
            model=model,
            args=sft_config(settings, config),
            train_dataset=Dataset.from_dict(as_columns(rows)),
            processing_class=tokenizer,
            data_collator=functools.partial(collate, torch, pad_id=self.pad_id, packed=packed),
            callbacks=[self.clock, *callbacks],
        )
        # `LogProgress` logs what this one would print.
        self.remove_callback(PrinterCallback)
        # TRL has put its own head on the model; ours replaces it where it is faster.
        add_labelled_head(model, cpu_kernels=config.cpu_kernels)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if not batch_samples:
            return None
        weight = target_weight(batch_samples).to(device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        return weight

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the weighted loss of the learned tokens over the weight of the step's tokens."""
        divisor = target_weight([inputs]) if num_items_in_batch is None else num_items_in_batch
        outputs = model(**model_inputs(inputs), use_cache=False, fused_lm_head=True)
        self._task_loss.add(inputs, outputs)
        loss = weighted_sum(outputs, inputs) / divisor
        # DDP averages gradients over processes; the divisor already counts all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def padded_attention(self) -> AbstractContextManager[None]:
        """Give the model the attention of padded rows for a while, as other steps have it."""
        packing = self.settings.packing
        own = packing.padded_attention if packing.packed else attention_of(self.model)
        return attention_for(self.model, own)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the validation loss, log it and call the callbacks."""
        started = time.monotonic()
        # Padded, in training as in the steps that measure it again.
        with self.padded_attention():
            losses = row_losses(
                self.model,
                self.validation,
                pad_id=self.pad_id,
                device=self.settings.device,
                precision=self.settings.precision,
                group=self.settings.group,
            )
        free_gathered_weights(self.model)
        metrics = {
            f"{metric_key_prefix}_loss": losses.mean,
            f"{metric_key_prefix}_loss_error": losses.standard_error,
            f"{metric_key_prefix}_seconds": round(time.monotonic() - started, 3),
        }
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the tokens seen, the speed, and the time since the run began, in seconds."""
        if "loss" in logs:
            logs["tokens"] = self.tokens_through(self.state.global_step)
            fresh = logs["tokens"] - self.tokens_through(self.state.global_step - 1)
            logs["tokens_per_second"] = round(fresh / max(self.clock.steps[-1], 1e-9), 1)
            task_loss = self._task_loss.take()
            logs["rows"] = self._task_loss.rows
            if task_loss is not None:
                logs["task_loss"] = task_loss
        logs["seconds"] = round(self._before + time.monotonic() - self._started, 2)
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save when rank 0 does, and stop when it stops."""
        follow, control = self.settings.group.follow, self.control
        asked = [control.should_log, control.should_evaluate, control.should_save]
        control.should_log, control.should_evaluate, control.should_save = follow(asked)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        [self.control.should_training_stop] = follow([self.control.should_training_stop])

    def tokens_through(self, step: int) -> int:
        """Count the tokens (without padding) of all rows up to the end of an optimiser step."""
        return self._tokens[min(step, len(self._tokens) - 1)]

    def history(self) -> list[HistoryEntry]:
        """Return the losses logged so far, those before a resumed checkpoint included."""
        return history_of(self.state.log_history)

    def continue_clock(self, seconds: float) -> None:
        """Continue the clock of an interrupted training at its seconds."""
        self._started, self._before = time.monotonic(), seconds

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapter alone; no process holds the whole of a sharded base."""
        if state_dict is None:
            state_dict = trained_weights(self.model)
        super()._save(output_dir, state_dict)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: a checkpoint of a running training needs no model card."""


def history_of(log: Sequence[Mapping[str, Any]]) -> list[HistoryEntry]:
    """Return the losses of the trainer's log: one entry per logged step or validation pass."""
    names = HistoryEntry.__annotations__
    entries = (entry for entry in log if "loss" in entry or "eval_loss" in entry)
    found = ({n: finite_or_text(entry[n]) for n in names if n in entry} for entry in entries)
    return [cast("HistoryEntry", entry) for entry in found]


def _step_tokens(rows: Sequence[EncodedRow], settings: TrainerSettings) -> list[int]:
    """Count the tokens (without padding) of each optimiser step."""
    size = settings.micro_batch * settings.accumulation * settings.group.world_size
    lengths = [len(row.ids) for row in rows]
    return [sum(lengths[start : start + size]) for start in range(0, len(lengths), size)]


def sft_config(settings: TrainerSettings, config: TrainingConfig) -> SFTConfig:
    """Return the arguments of the trainer; callbacks order evaluation and saving."""
    arguments = SFTConfig(
        output_dir=str(settings.output),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        max_steps=settings.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=int(config.warmup_share * settings.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bf16",
        fp16=False,
        use_cpu=settings.device == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs=(
            {"use_reentrant": False} if config.gradient_checkpointing else None
        ),
        # Rows come tokenised, masked and in order.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=settings.device == "cuda",
        eval_strategy="no",
        eval_on_start=settings.eval_on_start,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        # A loss that is not a number must be visible, not averaged away.
        logging_nan_inf_filter=False,
        # Trackers get what `tracking/live_metrics.py` chooses: TRL's own reports name paths.
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        # Every weight that trains is used in every step.
        ddp_find_unused_parameters=False,
    )
    # A process has one GPU; the trainer would spread a batch over all GPUs that it sees.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
