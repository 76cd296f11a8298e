"""Refuse a base model that a run could not export, serve, release or hold in memory.

All of it is known from configuration, tokenizer and licence, so it is checked when a run is made,
or before its weights are fetched, and not after hours of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from tuneline.config import DeploymentConfig, PipelineConfig
from tuneline.errors import UserError
from tuneline.gguf.families import supported
from tuneline.gguf.settings import read_settings
from tuneline.gguf.tokenizer import refuse_foreign
from tuneline.licenses.rules import circumstances_of, judge, normalise
from tuneline.machine.quantity import quantity
from tuneline.models.base_model import check_directory, is_weights, read_json, read_license
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.base import ModelFacts, read_facts

# Engines whose build needs a GPU in the pods of the run.
GPU_ENGINES = ("tensorrt_llm", "tensorrt_llm_pytorch")

# Bytes of a stored weight, by `dtype` of a configuration (`torch_dtype` before transformers 5).
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GIB = 2**30


def refuse_unfit(directory: Path, sizes: Mapping[str, int], config: PipelineConfig) -> None:
    """Refuse a base model that the run can't take to its end.

    Args:
        directory: the model's files, or all but its weights.
        sizes: sizes of all its files, in bytes.
        config: the run's configuration.

    Raises:
        UserError: if there is a reason; the message says what to choose instead.
    """
    title = f"base model {config.base_model!r}"
    check_directory(directory, sizes, title)
    facts = read_facts(directory)
    refuse_unexportable(facts, config, title)
    refuse_engine(facts, config, title)
    refuse_license(facts, config, title)
    refuse_size(facts, sizes, config, title)


def refuse_unexportable(facts: ModelFacts, config: PipelineConfig, title: str) -> None:
    """Refuse a model without a faithful GGUF form, if llama.cpp has to answer in the run."""
    if config.deployment.engine == "llama_cpp":
        change = ""
    elif config.training.rehearsal_rows:
        # Rehearsal asks the base model through llama.cpp, in the image of training.
        change = ", or set training.rehearsal_rows to 0"
    else:
        return
    try:
        settings = read_settings(facts.config, facts.path)
        refuse_foreign(read_json(facts.path / "tokenizer.json"), facts.path)
    except UserError as error:
        raise UserError(
            f"{title}: the tuned model could not be exported: {error}. Choose a base model of "
            f"{supported()} with the tokenizer of its family{change}"
        ) from None
    wanted, longest = config.deployment.context_tokens, settings.faithful_context
    if longest is not None and wanted > longest:
        raise UserError(
            f"{title}: deployment.context_tokens {wanted} is more than {longest}, up to which "
            "llama.cpp computes what the model was trained to; lower it, or choose another base "
            "model"
        )


def refuse_engine(facts: ModelFacts, config: PipelineConfig, title: str) -> None:
    """Refuse an engine that does not know the model, or has no GPU to be built on."""
    name = config.deployment.engine
    if name in GPU_ENGINES and config.pods.gpus == 0:
        raise UserError(
            f"deployment.engine: {name} is built on a GPU, and the pods of this run have none; "
            "set pods.gpus to 1 or more, or choose llama_cpp"
        )
    # llama.cpp loads what the exporter writes.
    if name == "llama_cpp":
        return
    found = get_engine(name).check(facts)
    if not found.compatible:
        engines = get_args(DeploymentConfig.model_fields["engine"].annotation)
        others = [e for e in engines if e == "llama_cpp" or get_engine(e).check(facts).compatible]
        raise UserError(
            f"{title}: deployment.engine {name} can't serve it: {found.reason} ({found.source}); "
            f"choose {' or '.join(others)}, or another base model"
        )


def refuse_license(facts: ModelFacts, config: PipelineConfig, title: str) -> None:
    """Refuse a licence that forbids the intended use, unless license_audit is waived.

    What the rules leave to a person is asked in license_audit.
    """
    if any(waiver.item == "license_audit" for waiver in config.waivers):
        return
    stated, source = read_license(facts.path, dict(facts.config))
    circumstances = circumstances_of(config, stated, facts.architecture)
    found = judge(normalise(stated), circumstances)
    if found.decision == "refused":
        raise UserError(
            f"{title}: its licence forbids {config.governance.intended_use} use: {found.reason} "
            f"({source}; {found.source}). Choose another base model, change "
            "governance.intended_use, or waive license_audit"
        )


def refuse_size(
    facts: ModelFacts, sizes: Mapping[str, int], config: PipelineConfig, title: str
) -> None:
    """Refuse a model that does not fit a pod where the adapter is merged, in float32."""
    stored = sum(size for name, size in sizes.items() if is_weights(name))
    dtype = facts.config.get("dtype") or facts.config.get("torch_dtype")
    needed = stored * 4 / _BYTES.get(str(dtype), 4)
    if needed > quantity(config.pods.memory):
        raise UserError(
            f"{title}: merging its adapter takes {needed / _GIB:.1f} GiB in float32, more than "
            f"pods.memory ({config.pods.memory}); raise it to {math.ceil(1.2 * needed / _GIB)}Gi "
            "or more, or choose a smaller base model"
        )
