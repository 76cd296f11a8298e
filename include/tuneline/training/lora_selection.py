"""Item lora_selection: the adapter's shape is chosen, counted exactly, documented, and loadable.

It proves that r, alpha and the target modules are what the run will train: the
modules are resolved to the names of this very architecture, the trainable
parameters counted on the PEFT model itself (built without weights). Alpha is
held against the usual 2 × r (Hu et al., "LoRA", 2021, use a constant ratio;
twice the rank is the field's custom). What the serving engine could not load
is refused before an hour of training, not after. Where ranks were tried
(`training.sweep_r`), it takes one by a stated rule and shows what it rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneline.artifacts.training import LORA, LoraSettings
from tuneline.config import TrainingConfig
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.run import StepContext
from tuneline.serving.engines.adapter_limits import rank_limit, refuse_unservable, refuse_unserved
from tuneline.training.loop.base_weights import linear_modules, module_kinds

USUAL_RATIO = 2.0
ALL_LINEAR = "all-linear"


def resolve_targets(wanted: str | Sequence[str], linear: Sequence[str]) -> list[str]:
    """Resolve target modules to the kinds of linear layers of this architecture.

    Args:
        wanted: `all-linear`, one name or several, as PEFT takes them.
        linear: full names of the linear layers that an adapter can sit on.

    Returns:
        Last parts of the names (`q_proj`, …), each once.

    Raises:
        UserError: a name that no linear layer ends in, or there is no linear layer.
    """
    kinds = module_kinds(linear)
    if not kinds:
        raise UserError(
            "training.target_modules: the base model has no linear layer that an adapter could "
            "sit on"
        )
    if wanted == ALL_LINEAR:
        return kinds
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    refuse_unserved(names)
    for name in names:
        if not any(full == name or full.endswith("." + name) for full in linear):
            raise UserError(
                f"training.target_modules: the base model has no linear layer {name!r}; "
                f"it has {', '.join(kinds)}"
            )
    return names


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
    from tuneline.training.loop.base_weights import attach_lora

    settings = LoraSettings(
        r=config.r,
        alpha=config.alpha_for(config.r),
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


def swept(ctx: StepContext) -> tuple[TrainingConfig, str, list[Measurement]]:
    """The training section with the rank that a sweep chose, if the run asks for one.

    Returns:
        The section, what was chosen in a sentence, and what that rests on.
    """
    config = ctx.config.training
    if not config.sweep_r:
        return config, "", []
    from tuneline.training.sweep.rank_choice import choose, measurements
    from tuneline.training.sweep.trials import holdout_accesses, read_trials

    trials = read_trials(ctx)
    choice = choose(trials)
    ctx.write_json("sweep.json", choice.model_dump())
    chosen = config.model_copy(update={"r": choice.r, "alpha": config.alpha_for(choice.r)})
    return chosen, choice.sentence, measurements(trials, choice, holdout_accesses(ctx.run))


def run(ctx: StepContext) -> Evidence:
    """Choose, count and document the adapter; writes `lora.json`, after a sweep `sweep.json`."""
    refuse_unservable(ctx.config.training, ctx.config.deployment)
    config, chosen, choice = swept(ctx)

    from tuneline.models import resolve
    from tuneline.training.loop.base_weights import shape_model
    from tuneline.training.loop.compute import load_torch, training_threads

    base = resolve(ctx.config.base_model, log=ctx.log)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    load_torch(training_threads(config))
    settings, layers = select(shape_model(base.path), config)
    if chosen:
        settings = settings.model_copy(update={"reason": f"{settings.reason}; {chosen}"})
    LORA.write(ctx, settings)
    ratio = settings.alpha / settings.r
    usual = "" if ratio == USUAL_RATIO else f"; alpha is {ratio:g} × r where 2 × r is usual"
    return ctx.conclude(
        settings.reason + usual,
        [
            measure("r", settings.r, "rank"),
            measure("alpha", settings.alpha, ""),
            measure("alpha_over_r", ratio, "ratio", "==", USUAL_RATIO, on_breach="warn"),
            measure("dropout", settings.dropout, "share"),
            measure("rslora", settings.rslora, ""),
            measure("dora", settings.dora, ""),
            measure("adapted_layers", layers, "layers", ">", 0),
            measure("target_modules", ", ".join(settings.target_modules), ""),
            measure("trainable_parameters", settings.trainable_parameters, "parameters", ">", 0),
            measure("total_parameters", settings.total_parameters, "parameters"),
            measure(
                "trainable_share",
                settings.trainable_parameters / settings.total_parameters,
                "share",
            ),
            _within(settings.r, rank_limit(ctx.config.deployment)),
            *choice,
        ],
    )


def _within(r: int, limit: int | None) -> Measurement:
    """The rank against what the engine loads."""
    if limit is None:
        return measure("rank_limit_of_engine", None, "rank")
    return measure("rank_for_engine", r, "rank", "<=", limit)
