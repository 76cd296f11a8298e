"""checkpointing: prove that the adapter that goes on is the one with the lowest validation loss.

The hash of the adapter is computed again, and its loss measured again after a fresh load of base
and adapter: another adapter than the best (transformers#29078) shows in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuneline.artifacts.training import (
    ADAPTER,
    ADAPTER_LOSSES,
    ADAPTER_WEIGHTS,
    CHECKPOINTS,
    AdapterLosses,
    Checkpoints,
    Evaluation,
)
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.step_context import StepContext
from tuneline.store import sha256_file

# A difference by less, in nats a token, changes no choice: probabilities move by 0.2 %.
IMMATERIAL_NATS = 2e-3
# The pass of training may have rounded as far to the other side as another order of sums does.
ROUNDING_FACTOR = 3.0


def lowest(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of the lowest finite loss, the earliest of equals; or UserError."""
    finite = [e for e in evaluations if math.isfinite(e.eval_loss)]
    if not finite:
        raise UserError("no evaluation has a validation loss that is a number; training diverged")
    return min(finite, key=lambda e: (e.eval_loss, e.step))


def judge(
    checkpoints: Checkpoints,
    adapter_sha256: str,
    measured: float,
    evaluations_asked: int,
    rounding: float = 0.0,
) -> list[Measurement]:
    """Compare the adapter that was kept (its hash and loss now) with the record of training.

    `rounding` is the difference of its loss if sums are taken in another order, nats.
    """
    best = lowest(checkpoints.evaluations)
    trained = [e for e in checkpoints.evaluations if e.step > 0]
    asked = min(2, evaluations_asked)
    limit = round(max(IMMATERIAL_NATS, ROUNDING_FACTOR * rounding), 6)
    return [
        measure("evaluations", len(trained), "passes", ">=", asked, on_breach="warn"),
        measure("kept_step", checkpoints.best_step, "steps", "==", best.step),
        measure("kept_adapter_sha256", adapter_sha256, "", "==", best.adapter_sha256),
        measure("lowest_recorded_loss", best.eval_loss, "nats", noise=best.eval_loss_error),
        measure("loss_measured_again", measured, "nats"),
        measure("loss_difference", abs(measured - best.eval_loss), "nats", "<=", limit),
    ]


def run(ctx: StepContext) -> Evidence:
    """Check the kept adapter against every evaluation; writes `evaluations.json`, `losses.json`."""
    checkpoints, folder = CHECKPOINTS.read(ctx), ADAPTER.fetch(ctx)
    evaluations = checkpoints.evaluations
    best = lowest(evaluations)

    from tuneline.training.loop.model import load_adapter
    from tuneline.training.loop.token_loss import EVAL_BATCH, Validation

    validation = Validation.of(ctx)
    ctx.log(f"measuring the kept adapter on {len(validation.rows)} validation rows")
    model = load_adapter(validation.load(), folder)
    losses, rounding = validation.losses(model), 0.0
    if abs(losses.mean - best.eval_loss) > IMMATERIAL_NATS:
        rounding = abs(validation.losses(model, batch=EVAL_BATCH // 4).mean - losses.mean)
    digest = sha256_file(folder / ADAPTER_WEIGHTS)
    ADAPTER_LOSSES.write(
        ctx,
        AdapterLosses(
            adapter_sha256=digest,
            row_ids=tuple(row.row_id for row in validation.rows),
            sums=losses.sums,
            targets=losses.targets,
            weights=losses.weights,
        ),
    )
    table = {"step", "eval_loss", "eval_loss_error", "adapter_sha256"}
    ctx.write_json("evaluations.json", [e.model_dump(include=table) for e in evaluations])
    asked = ctx.config.training.evaluations
    measurements = judge(checkpoints, digest, losses.mean, asked, rounding)
    wrong = [m.name for m in measurements if m.ok is False and m.on_breach == "fail"]
    finding = (
        f"the adapter kept is not the best one ({', '.join(wrong)} differ)"
        if wrong
        else f"kept step {best.step} of {len(evaluations)} evaluations by validation loss"
    )
    by_step = ", ".join(f"{e.step}: {e.eval_loss:.4f}" for e in evaluations)
    return ctx.conclude(
        f"{finding}; recorded {best.eval_loss:.4f} nats, measured again "
        f"{losses.mean:.4f} (by step {by_step})",
        measurements,
    )
