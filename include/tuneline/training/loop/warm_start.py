"""Start a training from the weights of the released adapter (`training.warm_start: released`).

lora_selection refuses an adapter that does not fit, and pins it by its hash in `lora.json`; train
loads those weights, whatever is released meanwhile. Optimiser and schedule are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.artifacts.releases import Release, released
from tuneline.artifacts.training import ADAPTER, ADAPTER_WEIGHTS, LoraSettings, StartedFrom
from tuneline.config import TrainingConfig
from tuneline.errors import UserError
from tuneline.evidence import FileRef
from tuneline.models import BaseModel
from tuneline.step_context import StepContext

_WEIGHTS = f"{ADAPTER.name}/{ADAPTER_WEIGHTS}"
_OR_COLD = "or set training.warm_start: none"

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class WarmStart:
    """A released adapter that a training may start from, and where its weights are."""

    release: Release
    settings: LoraSettings
    weights: FileRef

    @property
    def started_from(self) -> StartedFrom:
        """What `lora.json` says of it."""
        ref, release = self.weights.model_dump(include={"uri", "sha256", "bytes"}), self.release
        return StartedFrom(version=release.version, manifest=release.uri, **ref)

    def follow(self, config: TrainingConfig) -> TrainingConfig:
        """Put the released rank in the place of a sweep, if the settings ask for one."""
        if not config.sweep_r:
            return config
        r = self.settings.r
        return config.model_copy(update={"r": r, "alpha": config.alpha_for(r)})

    def check(self, base: BaseModel, wanted: LoraSettings, folder: Path) -> None:
        """Compare the released adapter with the one that the run wants to train.

        Raises:
            UserError: if base, settings or shapes differ.
        """
        was = self.release.manifest.base_model
        if was.get("digest") != base.digest:
            raise UserError(
                f"training.warm_start: the released adapter {self.weights.uri} was trained on "
                f"{was.get('uri')} (digest {str(was.get('digest'))[:12]}), this run has the base "
                f"{base.uri} (digest {base.digest[:12]}); name the same base_model, {_OR_COLD}"
            )
        differences = settings_that_differ(self.settings, wanted)
        if differences:
            raise UserError(
                f"training.warm_start: the released adapter {self.weights.uri} has "
                f"{'; '.join(differences)}; make the settings equal, {_OR_COLD}"
            )
        path = self.release.fetch(self.weights, folder / ADAPTER_WEIGHTS)
        misfit = first_misfit(_shapes_of_file(path), _shapes_on(base.path, wanted))
        if misfit:
            raise UserError(
                f"training.warm_start: {self.weights.uri} does not fit the base {base.uri}: "
                f"{misfit}; release an adapter of this base first, {_OR_COLD}"
            )


def find_warm_start(ctx: StepContext) -> WarmStart | None:
    """Find the released adapter, if the run asks to start from it and anything is released.

    UserError if the release states no adapter, or its weights are gone.
    """
    if ctx.config.training.warm_start == "none":
        return None
    release = released(ctx.run)
    if release is None:
        ctx.log(
            f"no release of {ctx.config.name} in {ctx.run.store.uri} yet: training starts from a "
            "new adapter"
        )
        return None
    settings = release.manifest.hyperparameters.get("lora")
    weights = release.find(_WEIGHTS) or release.artifact(ADAPTER.step, _WEIGHTS)
    if not settings or weights is None:
        raise UserError(
            f"training.warm_start: {release.uri} states no adapter, and its run left none; release "
            f"a model that has one first, {_OR_COLD}"
        )
    return WarmStart(release, LoraSettings.model_validate(settings), weights)


def settings_that_differ(was: LoraSettings, wanted: LoraSettings) -> list[str]:
    """Return what decides the meaning of the weights and differs, each with its setting."""
    pairs = {
        "r": (was.r, wanted.r),
        "alpha": (was.alpha, wanted.alpha),
        "rslora": (was.rslora, wanted.rslora),
        "dora": (was.dora, wanted.dora),
        "target_modules": (sorted(was.target_modules), sorted(wanted.target_modules)),
    }
    return [
        f"{name} {there} where training.{name} asks for {here}"
        for name, (there, here) in pairs.items()
        if there != here
    ]


def first_misfit(found: Shapes, wanted: Shapes) -> str | None:
    """Return the first tensor that is missing, too many or of another shape; None if all fit."""
    for name in sorted({*found, *wanted}):
        there, here = found.get(name), wanted.get(name)
        if there is None:
            return f"it lacks {name}"
        if here is None:
            return f"{name} has no place in the adapter"
        if list(there) != list(here):
            return f"{name} has the shape {list(there)}, the adapter {list(here)}"
    return None


def _shapes_of_file(path: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())  # the file itself can't be iterated over
            return {name: file.get_slice(name).get_shape() for name in names}
    except SafetensorError as error:
        raise UserError(f"{path.name} of the release is not a safetensors file: {error}") from None


def _shapes_on(base: Path, wanted: LoraSettings) -> Shapes:
    """Return the shapes of the adapter's weights as PEFT saves them, without any weights."""
    from peft import get_peft_model_state_dict

    from tuneline.training.loop.model import attach_lora, shape_model

    model = attach_lora(shape_model(base), wanted)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(weight.shape) for name, weight in state.items()}


def load_start(ctx: StepContext, model: Any, start: StartedFrom) -> None:
    """Put the pinned weights on a model with a new adapter, and note them among the inputs.

    UserError if they are gone, or do not fit; CorruptObject if they are others.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    store = ctx.run.store
    path = ctx.scratch / "released" / ADAPTER_WEIGHTS
    store.get_file(store.key_of(start.uri), path, sha256=start.sha256)
    ctx.note_input(f"released/{ADAPTER_WEIGHTS}", start.uri, path)
    result: Any = set_peft_model_state_dict(model, load_file(path))
    if result.unexpected_keys:
        raise UserError(
            f"{start.uri} does not fit the adapter of this run: {result.unexpected_keys[0]} has no "
            "place in it; run lora_selection again"
        )
    ctx.log(f"starting from the released adapter {start.uri}, SHA-256 {start.sha256[:12]}")
