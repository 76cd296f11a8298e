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
from tuneline.run import StepContext
from tuneline.training.base_weights import LoraSettings, attach_lora, load_base
from tuneline.training.compute import device_of, load_torch
from tuneline.training.launch_processes import Node, launch, must_launch
from tuneline.training.live_checkpoints import LiveCheckpoints, fingerprint
from tuneline.training.memory import GIB
from tuneline.training.out_of_memory import MemoryNotes, fitting, noticed
from tuneline.training.peak_memory import peak_memory
from tuneline.training.process_group import ProcessGroup, lost_processes_are_retryable
from tuneline.training.rehearsal import rehearsal_rows
from tuneline.training.sharding import gpu_memory, load_sharded_base, shards_base
from tuneline.training.token_loss import EVAL_BATCH
from tuneline.training.tracking.description import describe
from tuneline.training.tracking.session import Tracking, track
from tuneline.training.training_rows import (
    EncodedRow,
    encode_split,
    pad_token,
    run_order,
    total_steps,
)


@dataclass(frozen=True)
class Inputs:
    """What training reads.

    Attributes:
        base: directory of the base model.
        lora: the adapter's settings.
        plan: `plan.json` of gradient_accumulation.
        tokenizer: of the base.
        train: training rows.
        validation: validation rows.
        settings: fingerprint of all of it; a checkpoint of other settings is not resumed.
    """

    base: Path
    lora: LoraSettings
    plan: Mapping[str, Any]
    tokenizer: Any
    train: list[EncodedRow]
    validation: list[EncodedRow]
    settings: str


def read_inputs(ctx: StepContext) -> Inputs:
    """Fetch and tokenise what training needs.

    Raises:
        UserError: an earlier step has not been run, or the dataset has no usable rows.
    """
    from tuneline.models import load_tokenizer, resolve

    lora_file = ctx.input("lora_selection", "lora.json")
    plan_file = ctx.input("gradient_accumulation", "plan.json")
    dataset = ctx.input("distribution_balancing", "dataset.parquet")
    base = resolve(ctx.config.base_model, log=ctx.log)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    plan = fitting(json.loads(plan_file.read_text()), MemoryNotes(ctx.run).failures())
    tokenizer = load_tokenizer(base.path)
    data = ctx.config.data
    rehearsed = rehearsal_rows(ctx, tokenizer)

    def rows(split: str) -> list[EncodedRow]:
        return encode_split(dataset, split, tokenizer, data.target_format, data.max_tokens)

    # Not the micro-batch: a try with a smaller one goes on from the same checkpoint.
    shape = {name: plan[name] for name in ("effective_batch", "world_size")}
    hashes = {name: ref.sha256 for name, ref in ctx.inputs.items() if "plan.json" not in name}
    return Inputs(
        base=base.path,
        lora=LoraSettings.model_validate_json(lora_file.read_text()),
        plan=plan,
        tokenizer=tokenizer,
        train=[*rows("train"), *rehearsed],
        validation=rows("validation"),
        settings=fingerprint(
            hashes,
            shape,
            plan["precision"],
            plan["device"],
            base.digest,
            ctx.config.training.model_dump(mode="json"),
        ),
    )


def ordered_rows(inputs: Inputs, steps: int, seed: int) -> list[EncodedRow]:
    """The training rows in the order in which the run sees them."""
    order = run_order(
        [len(row.ids) for row in inputs.train],
        inputs.plan["effective_batch"],
        steps,
        seed,
        [row.rehearsal for row in inputs.train],
    )
    return [inputs.train[i] for i in order]


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

    from tuneline.training.checkpoint_times import EndWhenTold, SaveInTime
    from tuneline.training.resources import Resources
    from tuneline.training.train_callbacks import (
        EvaluateAt,
        KeepAdapters,
        SaveLive,
        SayProgress,
        ShareRandomState,
        StopOnTrip,
        evaluation_steps,
    )
    from tuneline.training.trainer import LabelledTokenTrainer, TrainerSettings

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
    return Outcome(
        steps=done,
        steps_planned=steps,
        resumed_from=resumed,
        stopped=_plain(asdict(trip)) if trip else None,
        seconds=max((float(e["seconds"]) for e in history), default=0.0),
        training_seconds=round(trainer.clock.total, 2),
        saving_seconds=round(saver.seconds, 2),
        tokens=tokens,
        tokens_per_second=round(here / trainer.clock.total, 1) if trainer.clock.total else 0.0,
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


def history_of(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log, losses only: one entry per logged step or evaluation."""
    names = (
        "step loss task_loss eval_loss eval_loss_error eval_seconds learning_rate grad_norm tokens "
        "tokens_per_second seconds"
    ).split()
    return [
        _plain({name: entry[name] for name in names if name in entry})
        for entry in entries
        if "loss" in entry or "eval_loss" in entry
    ]


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.jsonl`."""
    path.write_text("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in history))


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.jsonl`; `float("nan")` and its like stand there as text."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become text that `float` reads."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }


def _seconds_at(checkpoint: Path) -> float:
    """Seconds that an interrupted training had taken at its checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return max((float(entry.get("seconds", 0)) for entry in state["log_history"]), default=0.0)


def _leave_adapters(out: Path, evaluated: Path, evaluations: Sequence[Any]) -> None:
    """Write `adapter/` (the best), `checkpoints/` (the best few) and `checkpoints.json`."""
    from tuneline.training.train_callbacks import best_of

    best = best_of(list(evaluations))
    shutil.copytree(evaluated / best.folder, out / "adapter")
    kept = [entry for entry in evaluations if entry.kept]
    for entry in kept:
        if entry.step != best.step:
            shutil.copytree(evaluated / entry.folder, out / "checkpoints" / entry.folder)
    document = {
        "best_step": best.step,
        "evaluations": [
            _plain(
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


def hyperparameters(ctx: StepContext, inputs: Inputs) -> dict[str, Any]:
    """What the tracker and the manifest show of this training."""
    names = ("micro_batch", "accumulation", "world_size", "effective_batch", "precision", "device")
    return {
        **ctx.config.training.model_dump(mode="json"),
        **{name: inputs.plan[name] for name in names},
        "r": inputs.lora.r,
        "alpha": inputs.lora.alpha,
        "target_modules": inputs.lora.target_modules,
        "base_model": ctx.config.base_model,
        "train_rows": len(inputs.train),
        "validation_rows": len(inputs.validation),
    }


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
    from tuneline.training.resources import measured, told

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
