"""Item checkpointing: the adapter that goes on is the one with the lowest validation loss.

It proves it from the artifacts, not from what the trainer says: the hash of the
adapter is computed again and compared with the one noted at its evaluation,
and its loss is measured again on the validation rows, after a fresh load of
base and adapter. Keeping the last checkpoint instead of the best, or loading
another than was chosen (transformers#29078), shows as a difference in both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.run import StepContext
from tuneline.store import sha256_file

ADAPTER = "adapter/adapter_model.safetensors"
# What the same weights may differ by when measured again, in nats: nothing on a CPU with the
# same threads, the order of bf16 sums on a GPU.
TOLERANCE_NATS = 2e-3


def lowest(evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The evaluation with the lowest finite loss, the earliest of equals.

    Raises:
        UserError: none has a loss that is a number.
    """
    finite = [e for e in evaluations if math.isfinite(float(e["eval_loss"]))]
    if not finite:
        raise UserError("no evaluation has a validation loss that is a number; training diverged")
    return min(finite, key=lambda e: (float(e["eval_loss"]), e["step"]))


def judge(
    evaluations: Sequence[Mapping[str, Any]],
    best_step: int,
    adapter_sha256: str,
    measured: float,
    evaluations_asked: int,
) -> list[Measurement]:
    """Hold the adapter that was kept against what was recorded of it.

    Args:
        evaluations: of `checkpoints.json`.
        best_step: step that training says it kept.
        adapter_sha256: of the adapter's weights, computed now.
        measured: its validation loss, measured now.
        evaluations_asked: validation passes that the configuration asks for.
    """
    best = lowest(evaluations)
    recorded = float(best["eval_loss"])
    trained = [e for e in evaluations if e["step"] > 0]
    return [
        measure(
            "evaluations", len(trained), "passes", ">=", min(2, evaluations_asked), on_breach="warn"
        ),
        measure("kept_step", best_step, "steps", "==", best["step"]),
        measure("kept_adapter_sha256", adapter_sha256, "", "==", best["adapter_sha256"]),
        measure("lowest_recorded_loss", recorded, "nats", noise=best["eval_loss_error"]),
        measure("loss_measured_again", measured, "nats"),
        measure("loss_difference", abs(measured - recorded), "nats", "<=", TOLERANCE_NATS),
    ]


def run(ctx: StepContext) -> Evidence:
    """Check the kept adapter against every evaluation; writes `evaluations.json`."""
    document = json.loads(ctx.input("train", "checkpoints.json").read_text())
    folder = ctx.input_dir("train", "adapter")
    evaluations = document["evaluations"]
    best = lowest(evaluations)

    from tuneline.training.loop.validation_loss import Validation

    validation = Validation.of(ctx)
    ctx.log(f"measuring the kept adapter on {len(validation.rows)} validation rows")
    losses = validation.losses_of_adapter(folder, qlora=ctx.config.training.qlora)
    table = [
        {name: e[name] for name in ("step", "eval_loss", "eval_loss_error", "adapter_sha256")}
        for e in evaluations
    ]
    (ctx.out / "evaluations.json").write_text(json.dumps(table, indent=1))
    measurements = judge(
        evaluations,
        document["best_step"],
        sha256_file(folder / ADAPTER.rsplit("/", 1)[-1]),
        losses.mean,
        ctx.config.training.evaluations,
    )
    told = ", ".join(f"{e['step']}: {float(e['eval_loss']):.4f}" for e in evaluations)
    wrong = [m.name for m in measurements if m.ok is False and m.on_breach == "fail"]
    said = (
        f"the adapter kept is not the best one ({', '.join(wrong)} differ)"
        if wrong
        else f"kept step {best['step']} of {len(evaluations)} evaluations by validation loss"
    )
    return ctx.conclude(
        f"{said}; recorded {float(best['eval_loss']):.4f} nats, measured again "
        f"{losses.mean:.4f} (by step {told})",
        measurements,
    )
