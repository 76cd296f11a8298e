"""Refuse adapters that the serving engine can't load, by limits from the engines' sources.

An adapter that its engine rejects costs a whole training (vllm#9280, #32599), so settings are
checked against these limits before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.artifacts.releases import released
from tuneline.config import DeploymentConfig, TrainingConfig
from tuneline.errors import UserError
from tuneline.run import Run

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
            f"training.dora: {engine} can't load a DoRA adapter beside its base; set dora or "
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
