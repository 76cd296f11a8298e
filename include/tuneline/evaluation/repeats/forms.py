"""The forms in which replicas may serve the tuned model: merged, adapter apart, quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuneline.artifacts.deployment import REFERENCE
from tuneline.errors import TunelineError, first_line
from tuneline.harness.served_apart import run_adapter
from tuneline.harness.served_models import Candidate, engine_of, unquantised, untuned
from tuneline.serving.engines.engine import ServedModel
from tuneline.step_context import StepContext

MERGED, APART = "merged_f16", "apart"


@dataclass(frozen=True)
class Form:
    """A form of the tuned model that does not ship.

    Attributes:
        name: its name in the evidence.
        model: its bytes; None if it was not tried.
        why_not: why it was not tried.
    """

    name: str
    model: ServedModel | None
    why_not: str = ""


def other_forms(ctx: StepContext, chosen: Candidate, *, wanted: bool) -> list[Form]:
    """Return every form that the run knows of but the one that ships.

    Quantised variants that were not chosen are no longer in the run. An engine that compiles has
    only the form that it was built of.

    Args:
        ctx: the step.
        chosen: what ships.
        wanted: whether the run asks for them to be tried.
    """
    compiled = engine_of(ctx).form == "engine"
    found = [
        _form(ctx, name, make, wanted=wanted, compiled=compiled)
        for name, make in {MERGED: unquantised, APART: _apart}.items()
        if name != _shipped_as(chosen)
    ]
    gone = [
        name
        for name in ctx.config.deployment.measured_variants
        if name not in (chosen.variant, REFERENCE)
    ]
    return [*found, *(Form(name, None, "its bytes were not kept in the run") for name in gone)]


def _shipped_as(chosen: Candidate) -> str:
    if chosen.model.adapter is not None:
        return APART
    return MERGED if chosen.variant == REFERENCE else chosen.variant


def _form(
    ctx: StepContext,
    name: str,
    make: Callable[[StepContext], ServedModel],
    *,
    wanted: bool,
    compiled: bool,
) -> Form:
    if compiled:
        return Form(name, None, "the engine is built of one form")
    if not wanted:
        return Form(name, None, "evaluation.determinism_forms is `shipped`")
    try:
        return Form(name, make(ctx))
    except TunelineError as error:
        return Form(name, None, first_line(error))


def _apart(ctx: StepContext) -> ServedModel:
    # The adapter first: without one no base has to be made.
    adapter = run_adapter(ctx, engine_of(ctx))
    return untuned(ctx).beside(adapter)
