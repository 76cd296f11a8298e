"""Item lora_selection: the adapter's shape is chosen, counted exactly, documented, and loadable.

It proves that r, alpha and the target modules are what the run will train: the
modules are resolved to the names of this very architecture, the trainable
parameters counted on the PEFT model itself (built without weights). Alpha is
held against the usual 2 × r (Hu et al., "LoRA", 2021, use a constant ratio;
twice the rank is the field's custom). What the serving engine could not load
is refused before an hour of training, not after.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tuneline.config import DeploymentConfig, TrainingConfig
from tuneline.errors import UserError
from tuneline.evidence import Evidence, measure
from tuneline.run import StepContext
from tuneline.training.base_weights import LoraSettings, linear_modules, module_kinds

USUAL_RATIO = 2.0
# The largest rank each engine loads: vLLM's --max-lora-rank takes up to 512; TensorRT-LLM's
# --max_lora_rank is 64 unless the engine is built otherwise. llama.cpp has no limit.
MAX_RANK = {"vllm": 512, "tensorrt_llm": 64, "tensorrt_llm_pytorch": 64}
# Engines that load a weight-decomposed adapter (TensorRT-LLM by its DoRA plugin).
DORA_ENGINES = ("tensorrt_llm",)
# Modules that serving engines don't take from an adapter.
UNSERVED = ("lm_head", "embed_tokens", "embed_out", "wte")
ALL_LINEAR = "all-linear"


def resolve_targets(wanted: str | Sequence[str], linear: Sequence[str]) -> list[str]:
    """Resolve target modules to the kinds of linear layers of this architecture.

    Args:
        wanted: `all-linear`, one name or several, as PEFT takes them.
        linear: full names of the linear layers that an adapter can sit on.

    Returns:
        Last parts of the names (`q_proj`, …), each once.

    Raises:
        UserError: a name that no linear layer ends in.
    """
    kinds = module_kinds(linear)
    if wanted == ALL_LINEAR:
        return kinds
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    unserved = [name for name in names if name.rsplit(".", 1)[-1] in UNSERVED]
    if unserved:
        raise UserError(
            f"training.target_modules: no serving engine loads an adapter on {unserved[0]}; "
            f"choose among {', '.join(kinds)}"
        )
    for name in names:
        if not any(full == name or full.endswith("." + name) for full in linear):
            raise UserError(
                f"training.target_modules: the base model has no linear layer {name!r}; "
                f"it has {', '.join(kinds)}"
            )
    return names


def refuse_unservable(training: TrainingConfig, deployment: DeploymentConfig) -> None:
    """Refuse an adapter that the chosen engine can't load.

    Raises:
        UserError: the rank is above the engine's limit, or the engine has no DoRA.
    """
    engine = deployment.engine
    limit = MAX_RANK.get(engine)
    if limit is not None and training.r > limit:
        raise UserError(
            f"training.r is {training.r}, {engine} loads adapters up to rank {limit}; "
            "lower r or choose another deployment.engine"
        )
    if training.dora and engine not in DORA_ENGINES:
        raise UserError(f"training.dora: {engine} can't load a DoRA adapter; set dora to false")


def describe(settings: LoraSettings, modules: int, config: TrainingConfig) -> str:
    """The reason for the choice, in a sentence."""
    share = settings.trainable_parameters / settings.total_parameters
    scale = "alpha/√r" if settings.rslora else "alpha/r"
    ratio = settings.alpha / settings.r
    where = (
        "every linear layer but the head, which learns most at a given rank (QLoRA, 2023)"
        if config.target_modules == ALL_LINEAR
        else "the modules that the configuration names"
    )
    return (
        f"rank {settings.r} with alpha {settings.alpha} ({ratio:g} × r, scaled by {scale}) on "
        f"{modules} layers of the kinds {', '.join(settings.target_modules)}: {where}; "
        f"{settings.trainable_parameters:,} of {settings.total_parameters:,} parameters train "
        f"({share:.2%})"
    )


def select(model: Any, config: TrainingConfig) -> tuple[LoraSettings, int]:
    """Choose the adapter for a model and count it.

    Args:
        model: of `shape_model`; the adapter stays on it.
        config: the settings asked for.

    Returns:
        The settings, and how many layers carry an adapter.

    Raises:
        UserError: a target module that is not there.
    """
    from tuneline.training.base_weights import attach_lora

    settings = LoraSettings(
        r=config.r,
        alpha=2 * config.r if config.alpha is None else config.alpha,
        dropout=config.dropout,
        target_modules=resolve_targets(config.target_modules, linear_modules(model)),
        rslora=config.rslora,
        dora=config.dora,
    )
    tuned = attach_lora(model, settings)
    trainable, everything = tuned.get_nb_trainable_parameters()
    layers = sum(name.endswith("lora_A.default") for name, _ in tuned.named_modules())
    counted = settings.model_copy(
        update={"trainable_parameters": int(trainable), "total_parameters": int(everything)}
    )
    return counted.model_copy(update={"reason": describe(counted, layers, config)}), layers


def run(ctx: StepContext) -> Evidence:
    """Choose, count and document the adapter; writes `lora.json`."""
    config = ctx.config.training
    refuse_unservable(config, ctx.config.deployment)

    from tuneline.models import resolve
    from tuneline.training.base_weights import shape_model
    from tuneline.training.compute import load_torch, training_threads

    base = resolve(ctx.config.base_model, log=ctx.log)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    load_torch(training_threads(config))
    settings, layers = select(shape_model(base.path), config)
    (ctx.out / "lora.json").write_text(json.dumps(settings.model_dump(), indent=1))
    ratio = settings.alpha / settings.r
    usual = "" if ratio == USUAL_RATIO else f"; alpha is {ratio:g} × r where 2 × r is usual"
    return ctx.conclude(
        settings.reason + usual,
        [
            measure("r", settings.r, "rank"),
            measure("alpha", settings.alpha, ""),
            measure("alpha_over_r", ratio, "ratio", "==", USUAL_RATIO, on_breach="warn"),
            measure("dropout", settings.dropout, "share"),
            measure("adapted_layers", layers, "layers", ">", 0),
            measure("target_modules", ", ".join(settings.target_modules), ""),
            measure("trainable_parameters", settings.trainable_parameters, "parameters", ">", 0),
            measure("total_parameters", settings.total_parameters, "parameters"),
            measure(
                "trainable_share",
                settings.trainable_parameters / settings.total_parameters,
                "share",
            ),
            measure("rank_limit_of_engine", MAX_RANK.get(ctx.config.deployment.engine), "rank"),
        ],
    )
