"""Whole trainings on packed rows are those on padded rows: losses, adapter, resumption."""

import pytest
import torch
from tests.lab.runs import broken, value

from tuneline.artifacts.training import Packing
from tuneline.evidence import Verdict
from tuneline.training import gradient_accumulation
from tuneline.training.loop import flat_batch
from tuneline.training.loop.checkpoints import LiveCheckpoints
from tuneline.training.loop.packed_attention import attention_of
from tuneline.training.loop.trainer import LabelledTokenTrainer
from tuneline.training.memory.probe import measure_step

# Float32 sums in another order, over nine steps of Adam: losses in nats, weights absolute.
TOLERANCE = 1e-4
PLAN = {"packing": Packing(packed=True, attention="sdpa", padded_attention="sdpa")}


def leaky(batch, *, variable_lengths, whole=flat_batch.flatten):
    """A batch whose positions go on from row to row, so that no mask is made."""
    laid = whole(batch, variable_lengths=variable_lengths)
    count = laid.features["input_ids"].shape[1]
    laid.features["position_ids"] = torch.arange(count)[None]
    return laid


def equal(ours, theirs):
    for name in ("loss", "task_loss", "grad_norm", "eval_loss", "tokens"):
        one, other = ([e[name] for e in run.history if name in e] for run in (ours, theirs))
        assert len(one) > 2
        assert one == pytest.approx(other, abs=TOLERANCE), name
    assert ours.adapter.keys() == theirs.adapter.keys()
    for name, weight in theirs.adapter.items():
        assert torch.allclose(ours.adapter[name], weight, atol=TOLERANCE), name


@pytest.fixture(scope="module")
def padded(tmp_path_factory, tiny_base):
    """The padded run that the others are held against."""
    from tests.lab.training_runs import TrainingLab

    settings = {"training": {"packing": "off", "cpu_kernels": False}}
    run = TrainingLab(tmp_path_factory.mktemp("padded"), tiny_base, settings)
    run.train()
    return run


@pytest.fixture
def packs_seen(monkeypatch):
    """The rows of each sequence that the model was trained on."""
    seen = []
    whole = flat_batch.flatten

    def flatten(batch, **options):
        seen.append(len(batch["input_ids"]))
        return whole(batch, **options)

    monkeypatch.setattr("tuneline.training.loop.trainer.flatten", flatten)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_training_is_padded_training(lab, padded, packs_seen, checkpointing):
    run = lab(packing="on", cpu_kernels=False, gradient_checkpointing=checkpointing)
    evidence = run.train(**PLAN, pack_tokens=300)
    assert max(packs_seen) > 2
    equal(run, padded)
    assert run.trained["packing"]["packed"]
    assert run.trained["batches"]["padding_share"] == 0
    assert padded.trained["batches"]["padding_share"] > 0
    assert value(evidence, "packing") == "packed"
    assert value(evidence, "packed_share") > 0.9
    assert value(evidence, "micro_batches_per_step") == round(len(packs_seen) / 9, 2)
    assert value(evidence, "tokens_per_step") == pytest.approx(run.trained["tokens"] / 9, abs=0.1)
    assert "rows packed (sdpa)" in evidence.summary


def test_a_killed_training_resumes_with_other_packs(lab, padded, monkeypatch):
    run = lab(packing="on", cpu_kernels=False, evaluations=3)
    run.prepare(**PLAN, pack_tokens=300)
    save = LiveCheckpoints.save

    def killed(self, step, folders):
        save(self, step, folders)
        if step >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LiveCheckpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run.resume()
    # The machine of the next try has less memory.
    run.leave_plan(4, **PLAN, pack_tokens=120)
    run.resume()
    assert run.trained["resumed_from"] == 3
    equal(run, padded)


def test_a_model_that_fails_the_check_is_trained_padded_and_the_record_says_why(
    lab, padded, monkeypatch
):
    monkeypatch.setattr(flat_batch, "flatten", leaky)
    run = lab(packing="on", cpu_kernels=False)
    evidence = run.train(**PLAN, pack_tokens=300)
    equal(run, padded)
    assert not run.trained["packing"]["packed"]
    assert "rows padded: sdpa: a row's loss changes with its neighbour" in evidence.summary
    assert "packing" in broken(evidence)
    assert value(evidence, "padding_share") > 0


def test_a_leak_without_the_check_would_show_in_the_losses(lab, padded, monkeypatch):
    monkeypatch.setattr("tuneline.training.loop.trainer.flatten", leaky)
    run = lab(packing="on", cpu_kernels=False)
    run.train(**PLAN, pack_tokens=300)
    first = [next(e["loss"] for e in r.history if "loss" in e) for r in (run, padded)]
    assert abs(first[0] - first[1]) > 10 * TOLERANCE


def test_the_plan_of_a_packed_run_has_a_budget_of_tokens(lab, monkeypatch):
    run = lab(packing="on", effective_batch=12, evaluations=2)

    def here(spec, scratch):
        return measure_step(spec, scratch / "probed.json")

    monkeypatch.setattr(gradient_accumulation, "in_process", here)
    run.leave_lora()
    evidence = run.execute("gradient_accumulation", gradient_accumulation.run)
    assert evidence.verdict == Verdict.PASS, evidence.summary
    plan = run.document("gradient_accumulation", "plan.json")
    assert plan["packing"]["packed"]
    limit = plan["packing"]["limit"]
    # The longest rows that the masked attention is worth, in one sequence.
    assert 0 < plan["pack_tokens"] <= max(limit, plan["longest_row"])
    assert plan["tried"][0]["tokens"] == plan["pack_tokens"]
    # Accumulated packs of two rows against one padded batch.
    assert value(evidence, "gradient_difference") < TOLERANCE
    assert value(evidence, "packed_loss_difference") < TOLERANCE
    assert value(evidence, "padding_share") == 0
    assert 0 <= value(evidence, "padding_share_if_padded") < 1
    assert f"packs of up to {plan['pack_tokens']} tokens (sdpa)" in evidence.summary
    run.resume()
    assert run.trained["packing"]["packed"]


def test_validation_has_the_attention_that_other_steps_have(lab, monkeypatch):
    found = []
    real = LabelledTokenTrainer._log_probs

    def noted(self, model, inputs):
        found.append(attention_of(self.model))
        return real(self, model, inputs)

    monkeypatch.setattr(LabelledTokenTrainer, "_log_probs", noted)
    from tuneline.training.loop import trainer

    rows = trainer.row_losses
    passes = []

    def measured(model, *args, **options):
        passes.append(attention_of(model))
        return rows(model, *args, **options)

    monkeypatch.setattr(trainer, "row_losses", measured)
    run = lab(packing="on", cpu_kernels=False, epochs=1)
    check = "tuneline.training.packing.check.candidates"
    monkeypatch.setattr(check, lambda *args: ["eager"])
    run.train(**PLAN, pack_tokens=300)
    assert set(found) == {"eager"}
    assert set(passes) == {"sdpa"}
