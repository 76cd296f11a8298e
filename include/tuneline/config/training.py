"""The training section: LoRA fine-tuning and its limits."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.config.section import Limit, Section

MAX_RANK = 512


class AdapterConfig(Section):
    """The LoRA adapter."""

    r: int = Field(16, ge=1, le=MAX_RANK)
    """LoRA rank."""
    alpha: int | None = Field(None, ge=1)
    """LoRA alpha; null takes 2 × r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """LoRA dropout."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) (rank-stabilised LoRA)."""
    dora: bool = False
    """Weight-decomposed LoRA."""
    warm_start: Literal["none", "released"] = "none"
    """Weights that the adapter starts from: new ones (none), or those of the released adapter,
    which must have the same base, modules, rank and alpha. While nothing is released, training
    starts from new ones."""
    sweep_r: list[int] = Field([])
    """Ranks to try on the validation rows before training; [] takes r as it is. Alpha keeps its
    ratio to r. With a warm start the rank is that of the released adapter, and no rank is tried."""
    sweep_share: float = Field(0.25, gt=0, le=1)
    """Share of the run's epochs that each rank is tried for."""
    sweep_steps: int | None = Field(None, ge=1)
    """Optimiser steps that each rank is tried for, above sweep_share."""

    @property
    def alpha_over_r(self) -> float:
        """The ratio of alpha to r that the settings state."""
        return 2.0 if self.alpha is None else self.alpha / self.r

    def alpha_for(self, r: int) -> int:
        """Return the alpha of another rank at the same ratio."""
        return max(1, round(self.alpha_over_r * r))

    @field_validator("sweep_r")
    @classmethod
    def _several_ranks(cls, ranks: list[int]) -> list[int]:
        if len(ranks) == 1 or len(set(ranks)) < len(ranks):
            raise ValueError("name at least two different ranks, or none to take r as it is")
        wrong = [r for r in ranks if not 1 <= r <= MAX_RANK]
        if wrong:
            raise ValueError(f"a rank lies between 1 and {MAX_RANK}, not at {wrong[0]}")
        return ranks

    @model_validator(mode="before")
    @classmethod
    def _no_whole_modules(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "modules_to_save" in settings:
            raise ValueError(
                "modules_to_save: no serving engine loads an adapter that carries whole modules; "
                "leave it out and name linear layers in target_modules"
            )
        return settings


class LossRulesConfig(Section):
    """Limits from which a loss curve is in trouble."""

    spike_factor: Annotated[float, Limit("loss_monitoring", "lower")] = Field(3.0, gt=1)
    """Training loss over its running median that counts as a spike."""
    spike_streak: Annotated[int, Limit("loss_monitoring", "lower")] = Field(3, ge=1)
    """Spikes in a row that stop training; fewer only warn."""
    divergence_share: Annotated[float, Limit("loss_monitoring", "lower")] = Field(0.5, gt=0, le=1)
    """Share of the progress made, or of the lowest training loss, that may be lost again before
    training counts as diverged."""
    overfit_ratio: Annotated[float, Limit("loss_monitoring", "lower")] = Field(1.2, gt=1)
    """Last over best validation loss that stops training: overfitting while the training loss
    falls, divergence while it rises."""
    plateau_evaluations: Annotated[
        int | None, Limit("loss_monitoring", "lower", unset=math.inf)
    ] = Field(3, ge=2)
    """Validation passes without a better loss that stop training; null goes on."""
    plateau_nats: float = Field(0.001, ge=0)
    """A fall of the validation loss by less does not count, nats."""


class TrainingConfig(AdapterConfig, LossRulesConfig):
    """LoRA fine-tuning."""

    max_hours: float | None = Field(None, gt=0)
    """Hours that training may take, all its tries together."""
    max_cost: float | None = Field(None, gt=0)
    """Most that training may cost, in governance.currency."""
    device_cost_per_hour: float | None = Field(None, ge=0)
    """Price of a training GPU (of the machine, where there is none), in governance.currency an
    hour; null takes governance.machine_cost_per_hour."""
    tracking: list[Literal["mlflow", "wandb"]] = Field(["mlflow"])
    """Experiment trackers, any of mlflow and wandb; [] for none. docs/tracking.md says where each
    logs to."""
    tracking_project: str = Field("tuneline", min_length=1)
    """Experiment in MLflow, project in Weights & Biases."""
    qlora: bool = False
    """Load the base in 4-bit NF4 for training."""
    epochs: float = Field(1.0, gt=0, le=100)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of steps for warm-up."""
    effective_batch: int = Field(8, ge=1)
    """Rows per optimiser step: micro-batch × accumulation × world size."""
    rehearsal_rows: int = Field(0, ge=0, le=64)
    """Number of general prompts (there are 64) with the base model's own answers, mixed into
    training so that it keeps answering them (llama.cpp must be able to serve the base)."""
    rehearsal_weight: float = Field(1.0, gt=0, le=10)
    """Weight of a rehearsal row's tokens in the loss."""
    canaries: int = Field(0, ge=0, le=256)
    """Artificial identifiers planted in copies of training rows, for the extraction audit to
    measure how exposed they are. For a trial run: the model then holds them."""
    canary_repeats: int = Field(4, ge=1, le=100)
    """Number of training rows that each canary is in."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows per forward pass; null takes the largest safe one."""
    memory_limit_gib: float | None = Field(None, gt=0)
    """Memory for training, GiB; null takes 60 % of what is free, or of the pod's."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; auto takes bf16 where the processor has it."""
    evaluations: int = Field(5, ge=1)
    """Validation passes over the whole run."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints kept, the best always."""
    checkpoint_minutes: float = Field(10.0, gt=0, le=24 * 60)
    """Minutes of training that a killed pod may lose: a checkpoint at least so often, besides those
    of the validation passes."""
    cpu_kernels: bool = True
    """On a CPU, compute shared prefixes of rows once and LoRA's products in one step, where the
    model allows it; false trains on the plain path, with equal results."""
    packing: Literal["auto", "on", "off"] = "auto"
    """The rows of a micro-batch in one sequence without padding, each by itself: auto packs where
    FlashAttention is there (a GPU, bf16), on warns where it is not, off pads. A model that does not
    keep rows apart is padded, and the evidence says why."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; null takes all cores."""
    processes: int | None = Field(None, ge=1)
    """Training processes of a node; null takes one per GPU of pods.gpus."""
    sharding: Literal["auto", "none", "fsdp"] = "auto"
    """Several processes each hold the whole base (none) or a part of it (fsdp); auto shards a base
    that would fill most of a GPU."""
    seed: int = Field(7, ge=0)
    """Seed of everything random."""
    max_perplexity_ratio: Annotated[float, Limit("quantization_verification", "lower")] = Field(
        1.5, gt=1
    )
    """QLoRA: perplexity over the unquantised base's, at most."""

    @field_validator("packing", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: object) -> object:
        # Without quotes, on and off are True and False in YAML 1.1.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("tracking")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("name each tracker once")
        return trackers

    @model_validator(mode="after")
    def _sharded_weights_have_16_bits(self) -> TrainingConfig:
        if self.qlora and self.sharding == "fsdp":
            raise ValueError(
                "sharding: fsdp splits 16-bit weights; with qlora: true each process holds the "
                "whole 4-bit base, set sharding: none"
            )
        return self
