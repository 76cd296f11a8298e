"""The kept adapter is the best one: its hash and its loss say so, or the verdict turns."""

import json

import pytest
from tests.lab.runs import broken, value

from tuneline.artifacts.training import Checkpoints, Evaluation
from tuneline.errors import UserError
from tuneline.evidence import Verdict
from tuneline.statistics import RowLosses
from tuneline.training import checkpointing
from tuneline.training.checkpointing import lowest


def copy_of(trained, lab, adapter="adapter", change=None):
    """A run with the artifacts of the trained one, an adapter of it in the adapter's place."""
    run = lab(epochs=4)
    run.prepare()
    document = trained.document("train", "checkpoints.json")
    if change:
        change(document)
    files = {"checkpoints.json": json.dumps(document)}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        files[f"adapter/{name}"] = trained.artifact("train", f"{adapter}/{name}")
    run.leave("train", files)
    return run


def other_checkpoint(trained):
    document = trained.document("train", "checkpoints.json")
    entries = [e for e in document["evaluations"] if e["kept"]]
    return next(e for e in entries if e["step"] != document["best_step"])


def test_the_best_adapter_passes(trained, lab):
    evidence = copy_of(trained, lab).execute("checkpointing", checkpointing.run)
    assert evidence.verdict == Verdict.PASS
    assert value(evidence, "loss_difference") < 1e-5
    assert value(evidence, "evaluations") == 3


def test_the_losses_of_the_kept_adapter_are_left_row_by_row(trained, lab):
    run = copy_of(trained, lab)
    evidence = run.execute("checkpointing", checkpointing.run)
    left = run.document("checkpointing", "losses.json")
    assert len(left["row_ids"]) == len(set(left["row_ids"])) == 12
    found = RowLosses(left["sums"], left["targets"], left["weights"])
    assert found.mean == pytest.approx(value(evidence, "loss_measured_again"))
    assert left["adapter_sha256"] == value(evidence, "kept_adapter_sha256")


def test_bf16_is_measured_again_to_the_last_digit(lab):
    """On a CPU nothing differs: not the order in which LoRA's products are rounded, either."""
    run = lab(epochs=2, precision="bf16", r=64)
    run.train(precision="bf16")
    evidence = run.execute("checkpointing", checkpointing.run)
    assert value(evidence, "loss_difference") == 0


def test_an_adapter_of_another_checkpoint_fails(trained, lab):
    run = copy_of(trained, lab, adapter=other_checkpoint(trained)["path"])
    evidence = run.execute("checkpointing", checkpointing.run)
    assert evidence.verdict == Verdict.FAIL
    assert broken(evidence) == {"kept_adapter_sha256", "loss_difference"}
    assert "not the best one" in evidence.summary


def test_keeping_the_last_instead_of_the_best_fails(trained, lab):
    other = other_checkpoint(trained)

    def keep_other(document):
        document["best_step"] = other["step"]

    run = copy_of(trained, lab, adapter=other["path"], change=keep_other)
    evidence = run.execute("checkpointing", checkpointing.run)
    assert evidence.verdict == Verdict.FAIL
    assert broken(evidence) >= {"kept_step", "kept_adapter_sha256"}


def test_a_loss_that_can_not_be_measured_again_fails(trained, lab):
    def embellish(document):
        for entry in document["evaluations"]:
            entry["eval_loss"] -= 0.05

    evidence = copy_of(trained, lab, change=embellish).execute("checkpointing", checkpointing.run)
    assert evidence.verdict == Verdict.FAIL
    assert broken(evidence) == {"loss_difference"}


def test_a_single_evaluation_is_no_choice():
    only = Evaluation(step=5, eval_loss=1.0, eval_loss_error=0.1, adapter_sha256="a")
    checkpoints = Checkpoints(best_step=5, evaluations=[only])
    measurements = checkpointing.judge(checkpoints, "a", 1.0, 3)
    assert broken(measurements) == {"evaluations"}


def test_not_a_number_is_never_the_lowest():
    entries = [Evaluation(step=0, eval_loss="nan"), Evaluation(step=5, eval_loss=2.0)]
    assert lowest(entries).step == 5
    with pytest.raises(UserError, match="training diverged"):
        lowest(entries[:1])
