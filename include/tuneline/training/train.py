"""Helper step train: the adapter is trained on the learned tokens, watched, and kept by loss.

TRL's SFTTrainer on the real weights, with the adapter of lora_selection and the
batch shape of gradient_accumulation. The row's `weight` multiplies the loss of
its tokens. The run is evaluated before the first step and then as often as the
configuration says; every evaluation's adapter is a candidate, the lowest
validation loss wins. Checkpoints go to the store as training goes on, with every
evaluation, by the clock and when the pod is told to end, so a killed pod resumes
from the last one: optimiser, schedule, random state and position in the data
included.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.evidence import Record, measure
from tuneline.machine.peak_memory import peak_memory
from tuneline.run import StepContext
from tuneline.training.loop.base_weights import attach_lora, load_base
from tuneline.training.loop.compute import device_of, load_torch
from tuneline.training.loop.inputs import (
    Inputs,
    hyperparameters,
    ordered_rows,
    read_inputs,
)
from tuneline.training.loop.live_checkpoints import LiveCheckpoints, fingerprint
from tuneline.training.loop.loss_history import history_of, plain, write_history
from tuneline.training.loop.rows import pad_token, total_steps
from tuneline.training.loop.token_loss import EVAL_BATCH
from tuneline.training.memory.out_of_memory import noticed
from tuneline.training.memory.predict import GIB
from tuneline.training.processes.group import ProcessGroup, lost_processes_are_retryable
from tuneline.training.processes.launch import Node, launch, must_launch
from tuneline.training.processes.sharding import gpu_memory, load_sharded_base, shards_base
from tuneline.training.tracking.description import describe
from tuneline.training.tracking.session import Tracking, track


@dataclass(frozen=True)
class Outcome:
    """What training came to; `run.json` holds it beside the tracker's run."""

    steps: int
    steps_planned: int
    resumed_from: int | None
    stopped: dict[str, Any] | None
    seconds: float
    training_seconds: float
    saving_seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    epochs_seen: float
    precision: str
    device: str
    threads: int
    seed: int
    world_size: int
    nodes: int
    backend: str | None
    sharding: str
    resources: dict[str, Any]


def train(
    ctx: StepContext, inputs: Inputs, tracking: Tracking, group: ProcessGroup
) -> Outcome | None:
    """Train, and leave adapters, history and evaluations in the step's output.

    Returns:
        What came of it; None for a process that is not the group's first, which leaves nothing.
    """
    import torch

    from tuneline.training.budget.resources import Resources
    from tuneline.training.loop.callbacks import (
        EvaluateAt,
        KeepAdapters,
        SaveLive,
        SayProgress,
        ShareRandomState,
        StopOnTrip,
        evaluation_steps,
    )
    from tuneline.training.loop.checkpoint_times import EndWhenTold, SaveInTime
    from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

    config, plan = ctx.config.training, inputs.plan
    steps = total_steps(len(inputs.train), plan["effective_batch"], config.epochs, config.max_steps)
    restored = ctx.scratch / "restored"
    live = LiveCheckpoints(ctx.run.store, ctx.run.key("work", "train"), inputs.settings)
    resumed = group.agree("the checkpoint that they found", live.restore(restored))
    if resumed is not None:
        ctx.log(f"resuming from the checkpoint of step {resumed} of {steps}")
    evaluated = restored / "evaluated"
    keeper = KeepAdapters(evaluated, config.keep_checkpoints, ctx.config.base_model)
    watcher = StopOnTrip(config, ctx.log)
    saver = SaveLive(live, evaluated)
    resources = Resources(ctx, plan)
    ending = EndWhenTold(group, ctx.log)
    # Rank 0 decides, evaluates and saves for all; every process sees the same losses.
    of_main = (
        [
            keeper,
            ShareRandomState(group),
            saver,
            SaveInTime(config.checkpoint_minutes),
            resources.limit,
        ]
        if group.is_main
        else [ShareRandomState(group)]
    )
    sharded = shards_base(config, inputs.base, group, gpu_memory(torch))
    if sharded:
        base = load_sharded_base(inputs.base, plan["device"], group)
    else:
        base = load_base(
            inputs.base, plan["device"], qlora=config.qlora, precision=plan["precision"]
        )
    trainer = LabelledTokenTrainer(
        model=attach_lora(base, inputs.lora),
        tokenizer=inputs.tokenizer,
        settings=TrainerSettings(
            output=ctx.scratch / "trainer",
            micro_batch=plan["micro_batch"],
            accumulation=plan["accumulation"],
            steps=steps,
            precision=plan["precision"],
            device=plan["device"],
            pad_id=pad_token(inputs.tokenizer),
            eval_batch=EVAL_BATCH,
            eval_on_start=resumed is None,
            run_name=ctx.run.run_id,
            group=group,
        ),
        config=config,
        rows=ordered_rows(inputs, steps, config.seed),
        validation=inputs.validation,
        callbacks=[
            EvaluateAt(evaluation_steps(steps, config.evaluations)),
            *of_main,
            watcher,
            ending,
            *([SayProgress(ctx.log)] if group.is_main else []),
            *tracking.callbacks(),
        ],
    )
    if not group.is_main:
        # Dropout of its own for the rows of its own.
        torch.manual_seed(config.seed + group.rank)
    if resumed is not None:
        trainer.continue_clock(_seconds_at(restored / "trainer"))
    with ending:
        trainer.train(resume_from_checkpoint=str(restored / "trainer") if resumed else None)
    done = trainer.state.global_step
    ending.check(done)

    peak = group.largest(peak_memory(torch, plan["device"]))
    if not group.is_main:
        return None
    history = history_of(trainer.state.log_history)
    write_history(ctx.out / "history.jsonl", history)
    _leave_adapters(ctx.out, evaluated, keeper.evaluations)
    live.clear()
    trip = watcher.trip or resources.limit.trip
    tokens = max((int(e["tokens"]) for e in history if "tokens" in e), default=0)
    here = tokens - (trainer.tokens_through(resumed) if resumed else 0)
    training_seconds = sum(trainer.clock.steps)
    return Outcome(
        steps=done,
        steps_planned=steps,
        resumed_from=resumed,
        stopped=plain(asdict(trip)) if trip else None,
        seconds=max((float(e["seconds"]) for e in history), default=0.0),
        training_seconds=round(training_seconds, 2),
        saving_seconds=round(saver.seconds, 2),
        tokens=tokens,
        tokens_per_second=round(here / training_seconds, 1) if training_seconds else 0.0,
        peak_memory_bytes=peak,
        epochs_seen=round(done * plan["effective_batch"] / len(inputs.train), 3),
        precision=plan["precision"],
        device=plan["device"],
        threads=plan["threads"],
        seed=config.seed,
        world_size=group.world_size,
        nodes=group.nodes,
        backend=group.backend,
        sharding="fsdp" if sharded else "none",
        resources=resources.close(tokens),
    )


def _seconds_at(checkpoint: Path) -> float:
    """Seconds that an interrupted training had taken at its checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return max((float(entry.get("seconds", 0)) for entry in state["log_history"]), default=0.0)


def _leave_adapters(out: Path, evaluated: Path, evaluations: Sequence[Any]) -> None:
    """Write `adapter/` (the best), `checkpoints/` (the best few) and `checkpoints.json`."""
    from tuneline.training.loop.callbacks import best_of

    best = best_of(list(evaluations))
    shutil.copytree(evaluated / best.folder, out / "adapter")
    kept = [entry for entry in evaluations if entry.kept]
    for entry in kept:
        if entry.step != best.step:
            shutil.copytree(evaluated / entry.folder, out / "checkpoints" / entry.folder)
    document = {
        "best_step": best.step,
        "evaluations": [
            plain(
                {
                    **asdict(entry),
                    "path": "adapter"
                    if entry.step == best.step
                    else f"checkpoints/{entry.folder}"
                    if entry.kept
                    else None,
                }
            )
            for entry in evaluations
        ],
    }
    (out / "checkpoints.json").write_text(json.dumps(document, indent=1))


def run(ctx: StepContext) -> Record | None:
    """Train the adapter; writes adapter, checkpoints, history and the tracker's run.

    Returns:
        None where another process records the step: in all training processes but the first,
        and in the one that starts them.
    """
    plan = json.loads(ctx.input("gradient_accumulation", "plan.json").read_text())
    if must_launch(ctx.config):
        _launch(ctx, plan)
        return None
    torch = load_torch(plan["threads"], ctx.config.training.seed)
    with lost_processes_are_retryable():
        group = ProcessGroup.join(torch)
        record = _train_in(ctx, plan, torch, group)
        group.leave()
    return record


def _launch(ctx: StepContext, plan: Mapping[str, Any]) -> None:
    """Start this node's training processes and wait for them."""
    from tuneline.models import resolve

    node = Node.of(ctx.config)
    # Once for all of them, rather than by all at once.
    resolve(ctx.config.base_model, log=ctx.log)
    ctx.log(f"node {node.index} of {node.nodes}: {node.processes} training processes")
    launch(node, ctx.run.uri, ctx.scratch, plan["threads"])


def _train_in(
    ctx: StepContext, plan: Mapping[str, Any], torch: Any, group: ProcessGroup
) -> Record | None:
    if group.world_size != plan["world_size"]:
        raise UserError(
            f"gradient_accumulation planned for {plan['world_size']} training processes, there are "
            f"{group.world_size}; run gradient_accumulation again with the same pods.nodes and "
            "training.processes"
        )
    found = device_of(torch)
    if found != plan["device"]:
        ctx.log(f"gradient_accumulation planned for {plan['device']}, this machine has {found}")
    inputs = read_inputs(ctx)
    together = f", {group.world_size} processes over {group.backend}" if group.backend else ""
    ctx.log(
        f"{len(inputs.train)} training rows, {len(inputs.validation)} validation rows, "
        f"{plan['threads']} threads, {plan['precision']} arithmetic{together}"
    )
    from tuneline.training.budget.resources import measured, told

    settings = hyperparameters(ctx, inputs)
    described = describe(
        ctx.run,
        key=fingerprint(ctx.run.uri, inputs.settings),
        settings=settings,
        dataset_sha256=ctx.inputs["distribution_balancing/dataset.parquet"].sha256,
    )
    trackers = ctx.config.training.tracking if group.is_main else []
    with (
        track(trackers, described, out=ctx.out, log=ctx.log) as tracking,
        noticed(ctx.run, "train", inputs.plan),
    ):
        outcome = train(ctx, inputs, tracking, group)
    if outcome is None:
        return None
    document = {
        **asdict(outcome),
        "tracking": tracking.document(),
        "tracking_seconds": tracking.seconds,
        "hyperparameters": settings,
    }
    (ctx.out / "run.json").write_text(json.dumps(document, indent=1))
    checkpoints = json.loads((ctx.out / "checkpoints.json").read_text())
    losses = {e["step"]: float(e["eval_loss"]) for e in checkpoints["evaluations"]}
    best = checkpoints["best_step"]
    stopped = f"; stopped early: {outcome.stopped['sentence']}" if outcome.stopped else ""
    return ctx.record(
        f"{outcome.steps} of {outcome.steps_planned} steps, validation loss "
        f"{losses.get(0, math.nan):.4f} → {losses[best]:.4f} at step {best}, "
        f"{outcome.tokens_per_second:.0f} tokens/s{told(outcome.resources)}{stopped}",
        [
            measure("steps", outcome.steps, "steps"),
            measure("best_step", best, "steps"),
            measure("best_validation_loss", losses[best], "nats"),
            measure("world_size", outcome.world_size, "processes"),
            measure("nodes", outcome.nodes, "nodes"),
            measure("tokens", outcome.tokens, "tokens"),
            measure("tokens_per_second", outcome.tokens_per_second, "1/s"),
            measure("peak_memory", round(outcome.peak_memory_bytes / GIB, 3), "GiB"),
            measure("saving_seconds", outcome.saving_seconds, "s"),
            *measured(outcome.resources),
        ],
        rows={"history.jsonl": outcome.steps},
    )
