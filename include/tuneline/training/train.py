"""train: train the adapter on the learned tokens and keep the one of the lowest validation loss.

TRL's SFTTrainer trains the adapter of lora_selection with the batch shape of
gradient_accumulation. The order of events, and of this module:

1. Set up: the checkpoint of an interrupted try, the model, the callbacks, the trainer.
2. Loop: optimiser steps and validation passes, to the last step, a tripped rule or a signal.
3. Keep: the best adapters, the losses step by step, and the course of the run.

Every validation pass makes its adapter a candidate, the untrained one included. Checkpoints go to
the store while training runs, so a killed pod resumes from the newest one: optimiser, schedule,
random state and position in the data included.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import (
    CHECKPOINTS,
    HISTORY,
    PLAN,
    TRAINED,
    Checkpoints,
    Plan,
    TrainedRun,
    Trip,
)
from tuneline.errors import UserError
from tuneline.evidence import Record, measure
from tuneline.machine.peak_memory import peak_memory
from tuneline.models import resolve
from tuneline.run import StepContext
from tuneline.training.loop.base_weights import attach_lora, load_base
from tuneline.training.loop.compute import device_of, load_torch
from tuneline.training.loop.inputs import Inputs, fingerprint, hyperparameters, read_inputs
from tuneline.training.loop.rows import pad_token, run_order, total_steps
from tuneline.training.loop.token_loss import EVAL_BATCH
from tuneline.training.memory.out_of_memory import noticed
from tuneline.training.memory.predict import GIB
from tuneline.training.processes.group import ProcessGroup, lost_processes_are_retryable
from tuneline.training.processes.launch import Node, launch, must_launch
from tuneline.training.processes.sharding import gpu_memory, load_sharded_base, shards_base
from tuneline.training.tracking.session import Tracking, track
from tuneline.training.tracking.tracked_run import describe

if TYPE_CHECKING:
    from tuneline.training.budget.resources import Resources
    from tuneline.training.loop.callbacks import KeepAdapters, StopOnTrip
    from tuneline.training.loop.checkpoints import EndOnSignal, LiveCheckpoints, SaveLive
    from tuneline.training.loop.trainer import LabelledTokenTrainer


# 1. Set up ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A training that is set up.

    Attributes:
        trainer: TRL's trainer with our loss.
        steps: optimiser steps planned.
        checkpoint: folder of the restored checkpoint.
        resumed: step of the restored checkpoint; None if training starts from the beginning.
        sharded: True if each process holds only a part of the base.
        live: checkpoints in the store.
        keeper: keeps the adapters of the best evaluations.
        saver: uploads checkpoints.
        watcher: stops on a loss rule.
        ending: stops on SIGTERM.
        resources: counts time, money and memory, and stops at their limits.
    """

    trainer: LabelledTokenTrainer
    steps: int
    checkpoint: Path
    resumed: int | None
    sharded: bool
    live: LiveCheckpoints
    keeper: KeepAdapters
    saver: SaveLive
    watcher: StopOnTrip
    ending: EndOnSignal
    resources: Resources


def set_up(ctx: StepContext, inputs: Inputs, tracking: Tracking, group: ProcessGroup) -> Training:
    """Restore the newest checkpoint, load the model and put the trainer together."""
    # These import torch, which has to be configured first (`load_torch`).
    import torch

    from tuneline.training.budget.resources import Resources
    from tuneline.training.loop import callbacks, checkpoints
    from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

    config, plan = ctx.config.training, inputs.plan
    steps = total_steps(len(inputs.train), plan.effective_batch, config.epochs, config.max_steps)

    # An interrupted try: every process must have found the same checkpoint.
    restored = ctx.scratch / "restored"
    live = checkpoints.LiveCheckpoints(ctx.run.store, ctx.run.key("work", "train"), inputs.settings)
    resumed = group.agree("the checkpoint that they found", live.restore(restored))
    if resumed is not None:
        ctx.log(f"resuming from the checkpoint of step {resumed} of {steps}")

    # The model: every process holds the whole base, or a part of one that would fill a GPU.
    sharded = shards_base(config, inputs.base, group, gpu_memory(torch))
    if sharded:
        base = load_sharded_base(inputs.base, plan.device, group)
    else:
        base = load_base(inputs.base, plan.device, qlora=config.qlora, precision=plan.precision)
    model = attach_lora(base, inputs.lora)

    # Between the steps: all processes evaluate, follow the same rules and end together.
    evaluated = restored / "evaluated"
    keeper = callbacks.KeepAdapters(evaluated, config.keep_checkpoints, ctx.config.base_model)
    saver = checkpoints.SaveLive(live, evaluated)
    watcher = callbacks.StopOnTrip(config, ctx.log)
    ending = checkpoints.EndOnSignal(group, ctx.log)
    resources = Resources(ctx, plan)
    events: list[Any] = [
        callbacks.EvaluateAt(callbacks.evaluation_steps(steps, config.evaluations)),
        checkpoints.ShareRandomState(group),
        watcher,
        ending,
    ]
    if group.is_main:
        # The first process saves and reports for all, and decides by its clock.
        by_clock = checkpoints.SaveByClock(config.checkpoint_minutes)
        events += [keeper, saver, by_clock, resources.limit, callbacks.LogProgress(ctx.log)]

    # The rows in the order of the run, which the seed fixes: a resumed run sees the rest of it.
    lengths = [len(row.ids) for row in inputs.train]
    marks = [row.rehearsal for row in inputs.train]
    order = run_order(lengths, plan.effective_batch, steps, config.seed, marks)
    trainer = LabelledTokenTrainer(
        model=model,
        tokenizer=inputs.tokenizer,
        settings=TrainerSettings(
            output=ctx.scratch / "trainer",
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            steps=steps,
            precision=plan.precision,
            device=plan.device,
            pad_id=pad_token(inputs.tokenizer),
            eval_batch=EVAL_BATCH,
            # The untrained adapter is a candidate too.
            eval_on_start=resumed is None,
            run_name=ctx.run.run_id,
            group=group,
        ),
        config=config,
        rows=[inputs.train[i] for i in order],
        validation=inputs.validation,
        callbacks=[*events, *tracking.callbacks()],
    )
    if not group.is_main:
        # Each process draws its own dropout for its own rows.
        torch.manual_seed(config.seed + group.rank)
    return Training(
        trainer=trainer,
        steps=steps,
        checkpoint=restored / "trainer",
        resumed=resumed,
        sharded=sharded,
        live=live,
        keeper=keeper,
        saver=saver,
        watcher=watcher,
        ending=ending,
        resources=resources,
    )


# 2. Loop ------------------------------------------------------------------------------------------


def loop(training: Training) -> None:
    """Train to the last step, or to the step at which a callback ends it.

    Raises:
        RetryableError: if a signal ended it; the next try resumes from its checkpoint.
    """
    trainer, checkpoint = training.trainer, training.checkpoint
    if training.resumed is not None:
        log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        trainer.continue_clock(max((entry.get("seconds", 0.0) for entry in log), default=0.0))
    with training.ending:
        # One step: micro-batches forward and backward, clip, step, schedule; see `loop/trainer.py`.
        trainer.train(resume_from_checkpoint=str(checkpoint) if training.resumed else None)
    training.ending.check(trainer.state.global_step)


# 3. Keep ------------------------------------------------------------------------------------------


def keep(ctx: StepContext, inputs: Inputs, training: Training, group: ProcessGroup) -> TrainedRun:
    """Leave adapters and losses in the step's output, and drop the live checkpoints.

    Returns:
        The course of the training, without its trackers.
    """
    trainer, plan = training.trainer, inputs.plan
    history = trainer.history()
    HISTORY.write(ctx, history)
    CHECKPOINTS.write(ctx, training.keeper.leave(ctx.out))
    training.live.clear()

    trip = training.watcher.trip or training.resources.limit.trip
    done = trainer.state.global_step
    tokens = max((entry.get("tokens", 0) for entry in history), default=0)
    of_this_try = tokens - (trainer.tokens_through(training.resumed) if training.resumed else 0)
    seconds = sum(trainer.clock.steps)
    return TrainedRun(
        steps=done,
        steps_planned=training.steps,
        resumed_from=training.resumed,
        stopped=Trip(**asdict(trip)) if trip else None,
        seconds=max((entry["seconds"] for entry in history), default=0.0),
        training_seconds=round(seconds, 2),
        saving_seconds=round(training.saver.seconds, 2),
        tokens=tokens,
        tokens_per_second=round(of_this_try / seconds, 1) if seconds else 0.0,
        epochs_seen=round(done * plan.effective_batch / len(inputs.train), 3),
        precision=plan.precision,
        device=plan.device,
        threads=plan.threads,
        seed=ctx.config.training.seed,
        world_size=group.world_size,
        nodes=group.nodes,
        backend=group.backend,
        sharding="fsdp" if training.sharded else "none",
        resources=training.resources.close(tokens),
    )


def train(
    ctx: StepContext, inputs: Inputs, tracking: Tracking, group: ProcessGroup
) -> TrainedRun | None:
    """Set up, loop and keep.

    Returns:
        The course of the training; None in every process but the group's first, which alone
        leaves files.
    """
    import torch

    training = set_up(ctx, inputs, tracking, group)
    loop(training)
    peak = group.largest(peak_memory(torch, inputs.plan.device))
    if not group.is_main:
        return None
    trained = keep(ctx, inputs, training, group)
    return trained.model_copy(update={"peak_memory_bytes": peak})


def run(ctx: StepContext) -> Record | None:
    """Train the adapter; writes adapter, checkpoints, losses and the course of the run.

    Returns:
        The record; None where another process records the step: in all training processes but
        the first, and in the one that starts them.
    """
    plan = PLAN.read(ctx)
    if must_launch(ctx.config):
        node = Node.of(ctx.config)
        # The base is fetched once, before all processes ask for it.
        resolve(ctx.config.base_model, log=ctx.log)
        ctx.log(f"node {node.index} of {node.nodes}: {node.processes} training processes")
        launch(node, ctx.run.uri, ctx.scratch, plan.threads)
        return None
    torch = load_torch(plan.threads, ctx.config.training.seed)
    with lost_processes_are_retryable():
        group = ProcessGroup.join(torch)
        _check_place(ctx, plan, torch, group)
        record = _train_tracked(ctx, group)
        group.leave()
    return record


def _check_place(ctx: StepContext, plan: Plan, torch: Any, group: ProcessGroup) -> None:
    """Compare this machine with the plan.

    Raises:
        UserError: if the plan is for another number of processes.
    """
    if group.world_size != plan.world_size:
        raise UserError(
            f"gradient_accumulation planned for {plan.world_size} training processes, there are "
            f"{group.world_size}; run gradient_accumulation again with the same pods.nodes and "
            "training.processes"
        )
    found = device_of(torch)
    if found != plan.device:
        ctx.log(f"gradient_accumulation planned for {plan.device}, this machine has {found}")


def _train_tracked(ctx: StepContext, group: ProcessGroup) -> Record | None:
    """Read, train under the trackers' eyes, and record."""
    inputs = read_inputs(ctx)
    plan = inputs.plan
    together = f", {group.world_size} processes over {group.backend}" if group.backend else ""
    ctx.log(
        f"{len(inputs.train)} training rows, {len(inputs.validation)} validation rows, "
        f"{plan.threads} threads, {plan.precision} arithmetic{together}"
    )
    settings = hyperparameters(ctx, inputs)
    described = describe(
        ctx.run,
        key=fingerprint(ctx.run.uri, inputs.settings),
        settings=settings,
        dataset_sha256=ctx.inputs[f"{DATASET.step}/{DATASET.name}"].sha256,
    )
    trackers = ctx.config.training.tracking if group.is_main else []
    with (
        track(trackers, described, out=ctx.out, log=ctx.log) as tracking,
        noticed(ctx.run, ctx.step, plan),
    ):
        trained = train(ctx, inputs, tracking, group)
    if trained is None:
        return None
    trained = trained.model_copy(
        update={
            "tracking": tracking.runs,
            "tracking_seconds": tracking.seconds,
            "hyperparameters": settings,
        }
    )
    TRAINED.write(ctx, trained)
    return _record(ctx, trained)


def _record(ctx: StepContext, trained: TrainedRun) -> Record:
    from tuneline.training.budget.resources import measured, told

    checkpoints = Checkpoints.model_validate_json(CHECKPOINTS.path(ctx).read_text())
    losses, best = checkpoints.losses, checkpoints.best_step
    stopped = f"; stopped early: {trained.stopped.sentence}" if trained.stopped else ""
    return ctx.record(
        f"{trained.steps} of {trained.steps_planned} steps, validation loss "
        f"{losses.get(0, math.nan):.4f} → {losses[best]:.4f} at step {best}, "
        f"{trained.tokens_per_second:.0f} tokens/s{told(trained.resources)}{stopped}",
        [
            measure("steps", trained.steps, "steps"),
            measure("best_step", best, "steps"),
            measure("best_validation_loss", losses[best], "nats"),
            measure("world_size", trained.world_size, "processes"),
            measure("nodes", trained.nodes, "nodes"),
            measure("tokens", trained.tokens, "tokens"),
            measure("tokens_per_second", trained.tokens_per_second, "1/s"),
            measure("peak_memory", round(trained.peak_memory_bytes / GIB, 3), "GiB"),
            measure("saving_seconds", trained.saving_seconds, "s"),
            *measured(trained.resources),
        ],
        rows={HISTORY.name: trained.steps},
    )
