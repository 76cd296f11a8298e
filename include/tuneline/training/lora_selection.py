"""lora_selection: prove that the adapter is chosen, counted exactly, documented and loadable.

Target modules are resolved to the names of this architecture, and trainable parameters counted on
the PEFT model itself, built without weights. Alpha is compared with the usual 2 × r; with `rslora`
none is usual, and its scale is stated. What the serving engine could not load is refused before
training. Where ranks were tried (`training.sweep_r`), one is taken by a stated rule; a warm start
has the released adapter's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneline.artifacts.training import LORA, LoraSettings
from tuneline.bases import base_of
from tuneline.config import TrainingConfig
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.serving.engines.limits import rank_limit, refuse_unservable, refuse_unserved
from tuneline.step_context import StepContext
from tuneline.training.loop.model import linear_modules
from tuneline.training.loop.warm_start import WarmStart, find_warm_start

USUAL_RATIO = 2.0
ALL_LINEAR = "all-linear"


def resolve_targets(wanted: str | Sequence[str], linear: Sequence[str]) -> list[str]:
    """Resolve target modules to the last parts of the names of linear layers (`q_proj`, …).

    `wanted` is as PEFT takes it: `all-linear`, one name or several. UserError if no linear layer
    ends in a name, or there is none.
    """
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
    if not kinds:
        raise UserError(
            "training.target_modules: the base model has no linear layer that could carry an "
            "adapter"
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


def describe(settings: LoraSettings, modules: int, config: TrainingConfig, experts: int = 0) -> str:
    """State the reason for the choice in a sentence; `experts` are parameters without adapter."""
    share = settings.trainable_parameters / settings.total_parameters
    scale = f"alpha/√r = {settings.alpha / settings.r**0.5:.3g}" if settings.rslora else "alpha/r"
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
        + (f"; the {experts:,} of the experts are not linear layers and stay" if experts else "")
    )


def select(model: Any, config: TrainingConfig) -> LoraSettings:
    """Choose the adapter for a model without weights; it stays on the model.

    UserError if a target module does not exist.
    """
    from tuneline.training.loop.model import attach_lora

    settings = LoraSettings(
        r=config.r,
        alpha=config.alpha_for(config.r),
        dropout=config.dropout,
        target_modules=resolve_targets(config.target_modules, linear_modules(model)),
        rslora=config.rslora,
        dora=config.dora,
    )
    tuned = attach_lora(model, settings)
    # transformers holds the experts of a mixture stacked, which LoRA for linear layers passes over.
    stacked = (p for name, p in tuned.named_parameters() if p.ndim == 3 and ".experts." in name)
    experts = sum(parameter.numel() for parameter in stacked)
    trainable, everything = tuned.get_nb_trainable_parameters()
    layers = sum(name.endswith("lora_A.default") for name, _ in tuned.named_modules())
    counted = settings.model_copy(
        update={"trainable_parameters": int(trainable), "total_parameters": int(everything)}
    )
    return counted.model_copy(update={"reason": describe(counted, layers, config, experts)})


def swept(ctx: StepContext) -> tuple[TrainingConfig, str, list[Measurement]]:
    """Put the rank that a sweep chose into the training section; with its sentence and measures."""
    config = ctx.config.training
    if not config.sweep_r:
        return config, "", []
    from tuneline.training.loop.rank_sweep import (
        choose,
        holdout_accesses,
        measurements,
        read_trials,
    )

    trials = read_trials(ctx)
    choice = choose(trials)
    ctx.write_json("sweep.json", choice.model_dump())
    chosen = config.model_copy(update={"r": choice.r, "alpha": config.alpha_for(choice.r)})
    return chosen, choice.sentence, measurements(trials, choice, holdout_accesses(ctx.run))


def followed(start: WarmStart, ctx: StepContext) -> tuple[TrainingConfig, str, list[Measurement]]:
    """Take the rank of the released adapter; see `swept` for what is returned."""
    config, begun = ctx.config.training, start.started_from
    instead = ", whose rank is kept: none was tried" if config.sweep_r else ""
    return (
        start.follow(config),
        f"it starts from the weights of the released version {begun.version}{instead}",
        [
            measure("started_from", begun.uri, ""),
            measure("started_from_sha256", begun.sha256, "sha256"),
        ],
    )


_USUAL: Any = {"rule": "==", "limit": USUAL_RATIO, "on_breach": "warn"}


def run(ctx: StepContext) -> Evidence:
    """Choose, count and document the adapter; writes `lora.json`, after a sweep `sweep.json`."""
    refuse_unservable(ctx.config.training, ctx.config.deployment)
    start = find_warm_start(ctx)
    config, chosen, choice = swept(ctx) if start is None else followed(start, ctx)

    from tuneline.training.loop.model import load_torch, shape_model, training_threads

    base = base_of(ctx, weights=False)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    load_torch(training_threads(config))
    settings = select(shape_model(base.path), config)
    if start is not None:
        start.check(base, settings, ctx.scratch)
        settings = settings.model_copy(update={"started_from": start.started_from})
    if chosen:
        settings = settings.model_copy(update={"reason": f"{settings.reason}; {chosen}"})
    LORA.write(ctx, settings)
    ratio = settings.alpha / settings.r
    judged = measure("alpha_over_r", ratio, "ratio", **({} if settings.rslora else _USUAL))
    usual = f"; alpha is {ratio:g} × r where 2 × r is usual" if judged.ok is False else ""
    limit = rank_limit(ctx.config.deployment)
    share = settings.trainable_parameters / settings.total_parameters
    return ctx.conclude(
        settings.reason + usual,
        [
            measure("r", settings.r, "rank"),
            measure("alpha", settings.alpha, ""),
            judged,
            measure("dropout", settings.dropout, "share"),
            measure("rslora", settings.rslora, ""),
            measure("dora", settings.dora, ""),
            measure("target_modules", ", ".join(settings.target_modules), ""),
            measure("trainable_parameters", settings.trainable_parameters, "parameters", ">", 0),
            measure("total_parameters", settings.total_parameters, "parameters"),
            measure("trainable_share", share, "share"),
            measure("rank_limit_of_engine", None, "rank")
            if limit is None
            else measure("rank_for_engine", settings.r, "rank", "<=", limit),
            *choice,
        ],
    )
