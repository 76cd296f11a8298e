"""Refuse what a run could not export, serve, release or hold in memory, before anything starts.

Of a base model, configuration, tokenizer and licence say so before its weights are fetched; of an
adapter, its settings: one that its engine rejects costs a whole training (vllm#9280, #32599)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from tuneline.artifacts.releases import released
from tuneline.catalogue import Size
from tuneline.config import DeploymentConfig, PipelineConfig, TrainingConfig
from tuneline.errors import UserError
from tuneline.gguf.architectures import read_settings, supported
from tuneline.gguf.tokenizer import refuse_foreign
from tuneline.licenses.rules import circumstances_of, judge, normalise
from tuneline.machine.quantity import quantity
from tuneline.models.base_model import check_directory, is_weights, read_json, read_license
from tuneline.run import Run
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import ModelFacts, read_facts

# Engines whose build needs a GPU in the pods of the run.
GPU_ENGINES = ("tensorrt_llm", "tensorrt_llm_pytorch")

# Bytes of a stored weight, by `dtype` of a configuration (`torch_dtype` before transformers 5).
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_GIB = 2**30

# The largest rank that an engine's server takes.
# vLLM: `--max-lora-rank` takes 1, 8, 16, 32, 64, 128, 256, 320 and 512 (`MaxLoRARanks` in
#   vllm/config/lora.py); the server is started with the next one above the adapter's rank.
# TensorRT-LLM: `max_lora_rank` of `LoraConfig` is 64 by default; it reserves workspace and has
#   no ceiling (tensorrt_llm/lora_helper.py, in 1.3 _torch/peft/lora/config.py).
#   `deployment.max_lora_rank` is the value that yours is started with.
# llama.cpp: takes the rank from the adapter's tensors (src/llama-adapter.cpp), no limit.
MAX_RANK = {"vllm": 512, "tensorrt_llm": 64, "tensorrt_llm_pytorch": 64}
# Engines that load a weight-decomposed adapter: TensorRT-LLM's engine path by its DoRA plugin
# (`trtllm-build --dora_plugin`). vLLM raises "vLLM does not yet support DoRA"
# (vllm/lora/peft_helper.py); llama.cpp's convert_lora_to_gguf.py knows lora_A and lora_B only.
DORA_ENGINES = ("tensorrt_llm",)
# Modules that engines don't take from an adapter: vLLM refuses `modules_to_save`
# (vllm/lora/peft_helper.py) and most of its models a LoRA on the head or the embeddings;
# llama.cpp's converter takes neither.
UNSERVED = ("lm_head", "embed_tokens", "embed_out", "wte")


def refuse_unfit(directory: Path, sizes: Mapping[str, int], config: PipelineConfig) -> None:
    """Refuse a base model that the run can't take to its end.

    Args:
        directory: the model's files, or all but its weights.
        sizes: sizes of all its files, in bytes.

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
    if name in GPU_ENGINES and config.pods_of(Size.ENGINE).gpus == 0:
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
    """Refuse a licence that forbids the intended use, unless a waiver of license_audit is asked.

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
    needed = 4 * parameters_of(facts.config, sizes)
    memory = config.pods_of(Size.MERGE).memory
    if needed > quantity(memory):
        raise UserError(
            f"{title}: merging its adapter takes {needed / _GIB:.1f} GiB in float32, more than its "
            f"pod has ({memory}); set pods: {{sizes: {{merge: {{memory: "
            f"{math.ceil(1.2 * needed / _GIB)}Gi}}}}}} or more, or choose a smaller base model"
        )


def parameters_of(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Return the number of a base model's parameters, by its config.json and its files' sizes."""
    stored = sum(size for name, size in sizes.items() if is_weights(name))
    dtype = config.get("dtype") or config.get("torch_dtype")
    return stored // _BYTES.get(str(dtype), 4)


def rank_limit(deployment: DeploymentConfig) -> int | None:
    """Return the largest rank that the chosen engine is started for; None without a limit."""
    known = MAX_RANK.get(deployment.engine)
    if deployment.max_lora_rank is None:
        return known
    if deployment.engine == "vllm" and known is not None:
        return min(known, deployment.max_lora_rank)
    return deployment.max_lora_rank


def ranks_asked(run: Run) -> list[int]:
    """Return the ranks that a run tries.

    Returns:
        The ranks; none without a sweep, or if training starts from a released adapter, whose
        rank is kept.

    Raises:
        UserError: if the serving engine can't load one of them.
    """
    training = run.config.training
    if not training.sweep_r:
        return []
    refuse_unservable(training, run.config.deployment)
    if training.warm_start == "released" and released(run) is not None:
        return []
    return list(training.sweep_r)


def refuse_unservable(training: TrainingConfig, deployment: DeploymentConfig) -> None:
    """Refuse an adapter that the chosen engine can't load.

    Raises:
        UserError: if a rank (also of a sweep) is above the engine's limit, no engine takes a
            target module, or the engine has no DoRA.
    """
    engine, limit = deployment.engine, rank_limit(deployment)
    ranks = training.sweep_r or [training.r]
    setting = "training.sweep_r" if training.sweep_r else "training.r"
    if limit is not None and max(ranks) > limit:
        raise UserError(
            f"{setting}: rank {max(ranks)} is above {limit}, the largest that {engine} loads; "
            "lower it, start the engine for more (deployment.max_lora_rank) or choose another "
            "deployment.engine"
        )
    refuse_unserved(training.target_modules)
    # Merged, it is a model like any other.
    if training.dora and deployment.multi_tenant and engine not in DORA_ENGINES:
        raise UserError(
            f"training.dora: {engine} can't load a DoRA adapter apart from its base; set dora or "
            "deployment.multi_tenant to false"
        )


def refuse_unserved(targets: str | Sequence[str]) -> None:
    """Refuse target modules that no serving engine takes from an adapter.

    Raises:
        UserError: if there is one; the message names the first.
    """
    names = [targets] if isinstance(targets, str) else targets
    unserved = [name for name in names if name.rsplit(".", 1)[-1] in UNSERVED]
    if unserved:
        raise UserError(
            f"training.target_modules: no serving engine loads an adapter on {unserved[0]}; "
            "name linear layers of attention and MLP, or all-linear"
        )
