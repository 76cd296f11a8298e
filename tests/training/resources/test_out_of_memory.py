"""Running out of memory is noted, told in a sentence, and the next try takes less."""

import pytest
import torch
from tests.lab.runs import value

from tuneline.artifacts.training import Plan
from tuneline.catalogue import Size
from tuneline.errors import RetryableError, UserError
from tuneline.machine.memory import is_out_of_memory
from tuneline.training import train
from tuneline.training.loop.callbacks import LiveCheckpoints
from tuneline.training.resources.out_of_memory import (
    Failure,
    MemoryNotes,
    after_kill,
    fitting,
    noticed,
)

KNOWN = {"threads": 1, "device": "cpu", "precision": "fp32", "estimate": {}}
PLAN = Plan(micro_batch=8, accumulation=2, world_size=1, effective_batch=16, **KNOWN)


def allocate_too_much():
    torch.empty(1 << 50)


def failures(*sizes, step="train"):
    return [Failure(step, size, "OOMKilled") for size in sizes]


def test_errors_that_mean_that_memory_ran_out():
    with pytest.raises(RuntimeError) as caught:
        allocate_too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_plan_steps_down_and_keeps_the_effective_batch():
    assert fitting(PLAN, []) == PLAN
    assert fitting(PLAN, failures(8, step="gradient_accumulation")) == PLAN
    less = fitting(PLAN, failures(8))
    assert (less.micro_batch, less.accumulation, less.planned_micro_batch) == (4, 4, 8)
    assert "planned" not in less.model_dump_json()
    assert fitting(PLAN, failures(8, 4)).micro_batch == 2
    with pytest.raises(UserError, match=r"even with a micro-batch of 1; set training.gradient_ch"):
        fitting(PLAN, failures(1))
    # Three processes share 24 rows: 8, 4, 2, 1.
    shared = PLAN.model_copy(update={"world_size": 3, "effective_batch": 24, "accumulation": 1})
    less = fitting(shared, failures(8))
    assert less.micro_batch * less.accumulation * 3 == 24


def test_a_failed_allocation_is_told_noted_and_retried(lab):
    run = lab().run
    with (
        pytest.raises(RetryableError, match=r"with a micro-batch of 8; the next try takes 4 rows"),
        noticed(run, "train", PLAN),
    ):
        allocate_too_much()
    [noted] = MemoryNotes(run).failures()
    assert (noted.step, noted.micro_batch) == ("train", 8)
    assert "can't allocate memory" in noted.how
    with (
        pytest.raises(UserError, match=r"no smaller one: set training.gradient_checkpointing"),
        noticed(run, "train", PLAN.model_copy(update={"micro_batch": 1})),
    ):
        allocate_too_much()


def test_other_errors_pass_unchanged(lab):
    run = lab().run
    with pytest.raises(RuntimeError, match="shape"), noticed(run, "train", PLAN):
        raise RuntimeError("shape mismatch")
    assert MemoryNotes(run).failures() == []
    assert MemoryNotes(run).tried("train") == 8


def test_a_killed_pod_is_noted_once(lab):
    run = lab(effective_batch=8).run
    # Before anything was tried the advice is general.
    again, sentence = after_kill(run.uri, "train", Size.TRAIN, limit="8Gi", pod="pod-0")
    assert again
    assert "give it more memory (pods: {sizes:" in sentence
    assert MemoryNotes(run).failures() == []
    MemoryNotes(run).trying("train", 8)
    for _ in range(2):
        again, sentence = after_kill(run.uri, "train", Size.TRAIN, limit="8Gi", pod="pod-1")
        assert again
        assert "the pod's limit of 8Gi was reached; the next try takes 4 rows × 2" in sentence
    assert len(MemoryNotes(run).failures()) == 1
    MemoryNotes(run).trying("train", 4)
    after_kill(run.uri, "train", Size.TRAIN, limit="8Gi", pod="pod-2")
    assert [f.micro_batch for f in MemoryNotes(run).failures()] == [8, 4]


def test_training_goes_on_from_its_checkpoint_with_a_smaller_micro_batch(lab, monkeypatch):
    """Memory runs out in the middle; the next try resumes, with the same curve as an even run."""
    from tuneline.training.loop.trainer import LabelledTokenTrainer

    run = lab(epochs=4)
    run.prepare()
    real, saved = LabelledTokenTrainer.training_step, LiveCheckpoints.save
    seen = []

    def save(live, step, folders):
        seen.append(step)
        return saved(live, step, folders)

    def training_step(trainer, *args, **options):
        if seen and trainer.settings.micro_batch == 4:
            allocate_too_much()
        return real(trainer, *args, **options)

    monkeypatch.setattr(LiveCheckpoints, "save", save)
    monkeypatch.setattr(LabelledTokenTrainer, "training_step", training_step)
    with pytest.raises(RetryableError, match="the next try takes 2 rows × 4 accumulated"):
        run.execute("train", train.run)
    record = run.execute("train", train.run)
    document = run.document("train", "run.json")
    assert document["resumed_from"] == seen[0] > 0
    assert document["steps"] == document["steps_planned"] == 18
    resources = document["resources"]
    assert (resources["micro_batch"], resources["planned_micro_batch"]) == (2, 4)
    assert [failure["micro_batch"] for failure in resources["out_of_memory"]] == [4]
    assert (value(record, "micro_batch"), value(record, "out_of_memory")) == (2, 1)
    assert "went on with 2 × 4 accumulated" in record.summary
    assert not list(run.run.store.keys(run.run.key("work")))

    monkeypatch.undo()
    even = lab("even", epochs=4)
    even.train()
    assert run.validation_losses == pytest.approx(even.validation_losses, abs=2e-3)
