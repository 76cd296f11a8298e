"""train: train the adapter on the learned tokens and keep the one of the lowest validation loss.

Every validation pass makes its adapter a candidate, the untrained one included. A killed pod
resumes from the newest checkpoint: optimiser, schedule, random state and position in the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import (
    CANARIES,
    CHECKPOINTS,
    HISTORY,
    LORA,
    PLAN,
    TRAINED,
    Canaries,
    Checkpoints,
    LoraSettings,
    Packing,
    Plan,
    TrainedRun,
)
from tuneline.bases import base_of
from tuneline.errors import UserError
from tuneline.evidence import Record, measure
from tuneline.machine.memory import peak_memory
from tuneline.models import load_tokenizer
from tuneline.step_context import StepContext
from tuneline.training.loop.extra_rows import plant, rehearsal_rows
from tuneline.training.loop.model import (
    attach_lora,
    device_of,
    gpu_memory,
    load_base,
    load_sharded_base,
    load_torch,
    shards_base,
)
from tuneline.training.loop.processes import (
    Node,
    ProcessGroup,
    launch,
    lost_processes_are_retryable,
    must_launch,
)
from tuneline.training.loop.rows import (
    EncodedRow,
    batch_shape,
    encode_split,
    evaluation_steps,
    pad_token,
    run_order,
    total_steps,
)
from tuneline.training.loop.warm_start import load_start
from tuneline.training.resources.checks import (
    choose_packing,
    packing_measurements,
    packing_sentence,
)
from tuneline.training.resources.out_of_memory import GIB, MemoryNotes, fitting, noticed
from tuneline.training.tracking.runs import Description, Tracking, describe

if TYPE_CHECKING:
    from tuneline.training.loop.trainer import LabelledTokenTrainer


@dataclass(frozen=True)
class Inputs:
    """The inputs of a training.

    `settings` is a fingerprint of all of it; a checkpoint of other settings is not resumed.
    """

    base: Path
    lora: LoraSettings
    plan: Plan
    tokenizer: Any
    train: list[EncodedRow]
    validation: list[EncodedRow]
    settings: str


def read_inputs(ctx: StepContext) -> Inputs:
    """Fetch and tokenise what training reads.

    UserError if an earlier step has not been run, or the dataset has no usable rows.
    """
    config, data = ctx.config.training, ctx.config.data
    lora, dataset = LORA.read(ctx), DATASET.fetch(ctx)
    # A smaller micro-batch than planned where an earlier try ran out of memory.
    plan = fitting(PLAN.read(ctx), MemoryNotes(ctx.run).failures())
    base = base_of(ctx)
    ctx.note_input("base_model/config.json", ctx.config.base_model, base.path / "config.json")
    tokenizer = load_tokenizer(base.path)

    def rows(split: str) -> list[EncodedRow]:
        return encode_split(dataset, split, tokenizer, data.target_format, data.max_tokens)

    # General prompts with the base's answers, where the configuration asks for them.
    rehearsed = rehearsal_rows(ctx, tokenizer)
    hashes = {name: ref.sha256 for name, ref in ctx.inputs.items() if PLAN.name not in name}
    settings = fingerprint(
        hashes,
        # Not the micro-batch: a try with a smaller one goes on from the same checkpoint.
        {"effective_batch": plan.effective_batch, "world_size": plan.world_size},
        plan.precision,
        plan.device,
        base.digest,
        config.model_dump(mode="json"),
    )
    trained, field = rows("train"), data.label_field
    longest = max(len(row.ids) for row in trained)
    planted = plant(
        dataset, config, tokenizer, data.target_format, label_field=field, longest=longest
    )
    if planted.canaries:
        CANARIES.write(ctx, Canaries(canaries=planted.canaries))
    train = [*trained, *rehearsed, *planted.rows]
    return Inputs(base.path, lora, plan, tokenizer, train, rows("validation"), settings)


def fingerprint(*parts: Any) -> str:
    """Return a short hash of settings; a checkpoint of other settings is of no use."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def hyperparameters(ctx: StepContext, inputs: Inputs) -> dict[str, Any]:
    """Return the settings of this training, for trackers and `run.json`."""
    shape = set("micro_batch accumulation world_size effective_batch precision device".split())
    return {
        **ctx.config.training.model_dump(mode="json"),
        **inputs.plan.model_dump(include=shape),
        "r": inputs.lora.r,
        "alpha": inputs.lora.alpha,
        "target_modules": inputs.lora.target_modules,
        "base_model": ctx.config.base_model,
        "train_rows": len(inputs.train),
        "validation_rows": len(inputs.validation),
    }


class Training:
    """One training, from the newest checkpoint of an interrupted try to the files that it leaves.

    `resumed` is the step of that checkpoint; None from the beginning.
    """

    def __init__(
        self, ctx: StepContext, inputs: Inputs, tracking: Tracking, group: ProcessGroup
    ) -> None:
        """Restore the checkpoint, load the model and put the trainer together."""
        self._ctx, self._inputs, self._group = ctx, inputs, group
        self._config, self._plan = ctx.config.training, inputs.plan
        length = self._config.epochs, self._config.max_steps
        self.steps = total_steps(len(inputs.train), self._plan.effective_batch, *length)
        self._restored = ctx.scratch / "restored"
        events = self._events(tracking)
        model = self._model()
        self.packing = self._packing(model)
        self.trainer = self._trainer(model, events)

    def _events(self, tracking: Tracking) -> list[Any]:
        """Restore the checkpoint, and list what happens between the steps."""
        # Imported here, as torch has to be configured first (`load_torch`).
        from tuneline.training.loop import callbacks
        from tuneline.training.resources.spending import Resources

        ctx, config, group = self._ctx, self._config, self._group
        key = ctx.run.key("work", "train")
        self._live = callbacks.LiveCheckpoints(ctx.run.store, key, self._inputs.settings)
        # Every process must have found the same checkpoint.
        found = self._live.restore(self._restored)
        self.resumed = group.agree("the checkpoint that they found", found)
        if self.resumed is not None:
            ctx.log(f"resuming from the checkpoint of step {self.resumed} of {self.steps}")

        evaluated = self._restored / "evaluated"
        self._keeper = callbacks.KeepAdapters(
            evaluated, config.keep_checkpoints, ctx.config.base_model
        )
        self._saver = callbacks.SaveLive(self._live, evaluated)
        self._watcher = callbacks.StopOnTrip(config, ctx.log)
        self._ending = callbacks.EndOnSignal(group, ctx.log)
        self._resources = Resources(ctx, self._plan)
        everywhere = [
            callbacks.EvaluateAt(evaluation_steps(self.steps, config.evaluations)),
            callbacks.ShareRandomState(group),
            self._watcher,
            self._ending,
        ]
        if not group.is_main:
            return everywhere
        # The first process saves and reports for all, and its clock decides.
        by_clock = callbacks.SaveByClock(config.checkpoint_minutes)
        reports = [callbacks.LogProgress(ctx.log), callbacks.ReportLive(tracking)]
        return [*everywhere, self._keeper, self._saver, by_clock, self._resources.limit, *reports]

    def _model(self) -> Any:
        """Load the base, whole or this process's part of it, and put the adapter on it."""
        import torch

        config, plan, path = self._config, self._plan, self._inputs.base
        self._sharded = shards_base(config, path, self._group, gpu_memory(torch))
        if self._sharded:
            base = load_sharded_base(path, plan.device, self._group)
        else:
            base = load_base(path, plan.device, qlora=config.qlora, precision=plan.precision)
        model = attach_lora(base, self._inputs.lora)
        # The weights of a checkpoint come later and are further on.
        if self._inputs.lora.started_from is not None and self.resumed is None:
            load_start(self._ctx, model, self._inputs.lora.started_from)
        return model

    def _packing(self, model: Any) -> Packing:
        """Check again that the model keeps packed rows apart, on this machine."""
        plan, inputs = self._plan, self._inputs
        if not plan.packing.packed:
            return plan.packing
        packing = choose_packing(
            model,
            inputs.train,
            setting="on",
            device=plan.device,
            precision=plan.precision,
            pad_id=pad_token(inputs.tokenizer),
            group=self._group,
        )
        if not packing.packed:
            self._ctx.log(f"rows are padded, though the plan packs them: {packing.reason}")
        return packing

    def _trainer(self, model: Any, events: list[Any]) -> LabelledTokenTrainer:
        import torch

        from tuneline.training.loop.cpu_kernels import can_share_prefixes
        from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings

        plan, rows, seed = self._plan, self._inputs.train, self._config.seed
        # The seed alone fixes the order of rows: a resumed run sees the rest of the same order.
        lengths, marks = [len(row.ids) for row in rows], [row.rehearsal for row in rows]
        order = run_order(lengths, plan.effective_batch, self.steps, seed, marks)
        end_to_end = self._config.cpu_kernels and can_share_prefixes(model.get_base_model())
        self._batches = batch_shape(
            [lengths[i] for i in order],
            plan.effective_batch,
            plan.micro_batch,
            end_to_end=self.packing.packed or end_to_end,
        )
        trainer = LabelledTokenTrainer(
            model=model,
            tokenizer=self._inputs.tokenizer,
            settings=TrainerSettings(
                output=self._ctx.scratch / "trainer",
                micro_batch=plan.micro_batch,
                accumulation=plan.accumulation,
                steps=self.steps,
                precision=plan.precision,
                device=plan.device,
                packing=self.packing,
                # The untrained adapter is a candidate too.
                eval_on_start=self.resumed is None,
                group=self._group,
            ),
            config=self._config,
            rows=[rows[i] for i in order],
            validation=self._inputs.validation,
            callbacks=events,
        )
        if not self._group.is_main:
            # Each process draws its own dropout for its own rows.
            torch.manual_seed(seed + self._group.rank)
        return trainer

    def loop(self) -> None:
        """Train to the last step, or to the one at which a callback ends it.

        RetryableError if a signal ended it; the next try resumes from its checkpoint.
        """
        checkpoint = None
        if self.resumed is not None:
            checkpoint = self._restored / "trainer"
            log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
            self.trainer.continue_clock(max((e.get("seconds", 0.0) for e in log), default=0.0))
        with self._ending:
            # A step: micro-batches forward and backward, clip, step, schedule; `loop/trainer.py`
            # has the loss.
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self._ending.check(self.trainer.state.global_step)

    def keep(self) -> TrainedRun | None:
        """Leave adapters and losses in the step's output, and drop the live checkpoints.

        The course of the training, without its trackers; None in all processes but the first.
        """
        import torch

        ctx, plan, group = self._ctx, self._plan, self._group
        peak = group.largest(peak_memory(torch, plan.device))
        if not group.is_main:
            return None
        history = self.trainer.history()
        HISTORY.write(ctx, history)
        CHECKPOINTS.write(ctx, self._keeper.leave(ctx.out))
        self._live.clear()

        done, seconds = self.trainer.state.global_step, sum(self.trainer.clock.steps)
        tokens = max((entry.get("tokens", 0) for entry in history), default=0)
        of_this_try = tokens - self.trainer.tokens_through(self.resumed or 0)
        return TrainedRun(
            steps=done,
            steps_planned=self.steps,
            resumed_from=self.resumed,
            started_from=self._inputs.lora.started_from,
            stopped=self._watcher.trip or self._resources.limit.trip,
            seconds=max((entry["seconds"] for entry in history), default=0.0),
            training_seconds=round(seconds, 2),
            saving_seconds=round(self._saver.seconds, 2),
            tokens=tokens,
            tokens_per_second=round(of_this_try / seconds, 1) if seconds else 0.0,
            peak_memory_bytes=peak,
            epochs_seen=round(done * plan.effective_batch / len(self._inputs.train), 3),
            precision=plan.precision,
            device=plan.device,
            threads=plan.threads,
            seed=self._config.seed,
            world_size=group.world_size,
            nodes=group.nodes,
            backend=group.backend,
            sharding="fsdp" if self._sharded else "none",
            packing=self.packing,
            batches=self._batches,
            resources=self._resources.close(tokens),
        )


@contextmanager
def _track(
    trackers: Sequence[str], description: Description, *, out: Path, log: Callable[[str], None]
) -> Iterator[Tracking]:
    """Open the runs of trackers for the time of training; W&B's files go below `out`."""
    tracking = Tracking()
    if "mlflow" in trackers:
        from tuneline.training.tracking.mlflow_run import open_mlflow

        tracking.add(open_mlflow(description, log))
    if "wandb" in trackers:
        from tuneline.training.tracking.wandb_run import open_wandb

        tracking.add(open_wandb(description, out, log))
    for run in tracking.runs:
        if run.url:
            log(f"watch it live in {run.title}: {run.url}")
    try:
        yield tracking
    except BaseException:
        tracking.close(failed=True)
        raise
    tracking.close(failed=False)


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
        _track(trackers, described, out=ctx.out, log=ctx.log) as tracking,
        noticed(ctx.run, ctx.step, plan),
    ):
        training = Training(ctx, inputs, tracking, group)
        training.loop()
        trained = training.keep()
    if trained is None:
        return None
    of_trackers = {"tracking": tracking.runs, "tracking_seconds": round(tracking.seconds, 4)}
    trained = trained.model_copy(update={**of_trackers, "hyperparameters": settings})
    TRAINED.write(ctx, trained)
    return _record(ctx, trained)


def _record(ctx: StepContext, trained: TrainedRun) -> Record:
    from tuneline.training.resources.spending import measured, memory_note

    checkpoints = Checkpoints.model_validate_json(CHECKPOINTS.path(ctx).read_text())
    losses, best = checkpoints.losses, checkpoints.best_step
    stopped = f"; stopped early: {trained.stopped.sentence}" if trained.stopped else ""
    begun = trained.started_from
    start = f" from the released version {begun.version}" if begun else ""
    started = [
        measure("started_from", begun.uri if begun else "new weights", ""),
        measure("started_from_sha256", begun.sha256 if begun else None, "sha256"),
    ]
    return ctx.record(
        f"{trained.steps} of {trained.steps_planned} steps{start}, validation loss "
        f"{losses.get(0, math.nan):.4f} → {losses[best]:.4f} at step {best}, "
        f"{trained.tokens_per_second:.0f} tokens/s{packing_sentence(trained.packing)}"
        f"{memory_note(trained.resources)}{stopped}",
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
            *started,
            *packing_measurements(trained.packing, trained.batches, ctx.config.training.packing),
            *measured(trained.resources),
        ],
        rows={HISTORY.name: trained.steps},
    )


def run(ctx: StepContext) -> Record | None:
    """Train the adapter; writes adapter, checkpoints, losses and the course of the run.

    None where another process records the step: in all but the group's first, and in the launcher.
    """
    plan = PLAN.read(ctx)
    if must_launch(ctx.config):
        node = Node.of(ctx.config)
        # The base is fetched once, before all processes ask for it.
        base_of(ctx)
        ctx.log(f"node {node.index} of {node.nodes}: {node.processes} training processes")
        launch(node, ctx.run.uri, ctx.scratch, plan.threads)
        return None
    torch = load_torch(plan.threads, ctx.config.training.seed)
    with lost_processes_are_retryable():
        group = ProcessGroup.join(torch)
        if group.world_size != plan.world_size:
            raise UserError(
                f"gradient_accumulation planned for {plan.world_size} training processes, there "
                f"are {group.world_size}; run gradient_accumulation again with the same "
                "pods.nodes and training.processes"
            )
        if (found := device_of(torch)) != plan.device:
            ctx.log(f"gradient_accumulation planned for {plan.device}, this machine has {found}")
        record = _train_tracked(ctx, group)
        group.leave()
    return record
