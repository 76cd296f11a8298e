"""The kept adapter is the best one: its hash and its loss say so, or the verdict turns."""

import json
from dataclasses import replace

import pytest
from tests.lab.runs import broken, value

from tuneline.artifacts.training import Checkpoints, Evaluation
from tuneline.errors import UserError
from tuneline.evidence import Verdict
from tuneline.statistics import RowLosses
from tuneline.training import checkpointing
from tuneline.training.checkpointing import lowest
from tuneline.training.loop.token_loss import EVAL_BATCH, Validation


def checked(trained, lab, *, other=False, change=None):
    """Check a copy of the trained run, perhaps with another adapter in the best one's place."""
    run = lab(epochs=4)
    run.prepare()
    document = trained.document("train", "checkpoints.json")
    kept = [e for e in document["evaluations"] if e["kept"]]
    another = next(e for e in kept if e["step"] != document["best_step"])
    if change:
        change(document, another["step"])
    files = {"checkpoints.json": json.dumps(document)}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        adapter = another["path"] if other else "adapter"
        files[f"adapter/{name}"] = trained.artifact("train", f"{adapter}/{name}")
    run.leave("train", files)
    return run, run.execute("checkpointing", checkpointing.run)


def test_the_best_adapter_passes_and_its_losses_are_left_row_by_row(trained, lab):
    run, evidence = checked(trained, lab)
    assert evidence.verdict == Verdict.PASS
    assert value(evidence, "loss_difference") < 1e-5
    assert value(evidence, "evaluations") == 3
    left = run.document("checkpointing", "losses.json")
    assert len(left["row_ids"]) == len(set(left["row_ids"])) == 12
    found = RowLosses(left["sums"], left["targets"], left["weights"])
    assert found.mean == pytest.approx(value(evidence, "loss_measured_again"))
    assert left["adapter_sha256"] == value(evidence, "kept_adapter_sha256")


def keep_the_last(document, step):
    document["best_step"] = step


def embellish(document, step):
    for entry in document["evaluations"]:
        entry["eval_loss"] -= 0.05


@pytest.mark.parametrize(
    ("other", "change", "names"),
    [
        # An adapter of another checkpoint.
        (True, None, {"kept_adapter_sha256", "loss_difference"}),
        (True, keep_the_last, {"kept_step", "kept_adapter_sha256", "loss_difference"}),
        # A loss that can't be measured again.
        (False, embellish, {"loss_difference"}),
    ],
)
def test_another_adapter_than_the_best_fails(trained, lab, other, change, names):
    _, evidence = checked(trained, lab, other=other, change=change)
    assert (evidence.verdict, broken(evidence)) == (Verdict.FAIL, names)
    assert "not the best one" in evidence.summary


def test_bf16_is_measured_again_to_the_last_digit(lab):
    """On a CPU nothing differs: not the order in which LoRA's products are rounded, either."""
    run = lab(epochs=2, precision="bf16", r=64)
    run.train(precision="bf16")
    evidence = run.execute("checkpointing", checkpointing.run)
    assert value(evidence, "loss_difference") == 0


@pytest.mark.parametrize(("rounding", "names"), [(0.0, {"loss_difference"}), (2e-3, set())])
def test_the_limit_of_the_loss_follows_from_rounding_measured_on_its_rows(
    trained, lab, monkeypatch, rounding, names
):
    def rounded(self, model, *, batch=EVAL_BATCH):
        losses = measured(self, model, batch=batch)
        if batch == EVAL_BATCH:
            return losses
        moved = (s + rounding * t for s, t in zip(losses.sums, losses.targets, strict=True))
        return replace(losses, sums=tuple(moved))

    def drift(document, step):
        for entry in document["evaluations"]:
            entry["eval_loss"] -= 0.005

    measured = Validation.losses
    monkeypatch.setattr(Validation, "losses", rounded)
    _, evidence = checked(trained, lab, change=drift)
    assert broken(evidence) == names


def test_not_a_number_is_never_the_lowest():
    entries = [Evaluation(step=0, eval_loss="nan"), Evaluation(step=5, eval_loss=2.0)]
    assert lowest(entries).step == 5
    # A single evaluation is no choice.
    only = Evaluation(step=5, eval_loss=1.0, eval_loss_error=0.1, adapter_sha256="a")
    checkpoints = Checkpoints(best_step=5, evaluations=[only])
    assert broken(checkpointing.judge(checkpoints, "a", 1.0, 3)) == {"evaluations"}
    with pytest.raises(UserError, match="training diverged"):
        lowest(entries[:1])
