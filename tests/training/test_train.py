"""Training keeps the best adapter, is tracked, stops on trouble, and survives a kill."""

import time

import pytest
from tests.lab.forked import start_training
from tests.lab.runs import broken
from tests.lab.training_runs import make_rows

from tuneline.artifacts.training import HISTORY, read_history
from tuneline.evidence import Verdict
from tuneline.store import sha256_file
from tuneline.training import loss_monitoring
from tuneline.training.loop.trainer import history_of, sft_config


def test_the_best_adapter_is_kept_and_everything_noted(trained):
    checkpoints = trained.document("train", "checkpoints.json")
    run = trained.trained
    history = trained.history
    steps = [e["step"] for e in checkpoints["evaluations"]]
    assert steps == [0, 6, 12, 18]
    best = min(checkpoints["evaluations"], key=lambda e: e["eval_loss"])
    assert checkpoints["best_step"] == best["step"]
    assert best["eval_loss"] < checkpoints["evaluations"][0]["eval_loss"] - 0.3
    adapter = trained.artifact("train", "adapter/adapter_model.safetensors")
    assert sha256_file(adapter) == best["adapter_sha256"]
    kept = [e for e in checkpoints["evaluations"] if e["kept"]]
    assert len(kept) == 2
    for entry in kept:
        assert trained.artifact("train", entry["path"] + "/adapter_config.json").is_file()
    assert [e["step"] for e in history if "loss" in e] == list(range(1, 19))
    assert [e["step"] for e in history if "eval_loss" in e] == steps
    assert (run["steps"], run["stopped"], run["resumed_from"]) == (18, None, None)
    assert run["epochs_seen"] == 4.0
    assert run["tokens"] == history[-2]["tokens"] > 0
    assert run["tracking"] == []
    assert not list(trained.run.store.keys(trained.run.key("work")))
    settings = trained.document("train", "adapter/adapter_config.json")
    assert settings["base_model_name_or_path"] == trained.run.config.base_model
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert not trained.artifact("train", "adapter/README.md").exists()


def test_training_again_gives_the_same_adapter(lab, trained):
    again = lab(epochs=4)
    again.train()
    first = trained.document("train", "checkpoints.json")["evaluations"]
    second = again.document("train", "checkpoints.json")["evaluations"]
    assert [e["adapter_sha256"] for e in first] == [e["adapter_sha256"] for e in second]


def test_bf16_arithmetic_follows_the_same_curve(lab, trained):
    run = lab(epochs=4, precision="bf16")
    run.train(precision="bf16")
    losses, whole = run.validation_losses, trained.validation_losses
    assert losses == pytest.approx(whole, rel=0.03)
    assert losses != whole


def test_qlora_trains_on_a_4bit_base(lab):
    run = lab(qlora=True, epochs=2)
    run.train()
    assert run.validation_losses[-1] < run.validation_losses[0]


def test_a_diverging_learning_rate_is_stopped_and_fails(lab, learned_base):
    settings = {"schedule": "constant", "warmup_share": 0.0, "epochs": 20}
    run = lab(base=learned_base, learning_rate=0.9, **settings)
    run.train()
    document = run.trained
    assert document["stopped"]["rule"] in ("divergence", "nan", "spike")
    assert document["steps"] < document["steps_planned"] == 90
    checkpoints = run.document("train", "checkpoints.json")
    losses = {e["step"]: float(e["eval_loss"]) for e in checkpoints["evaluations"]}
    assert checkpoints["best_step"] == min(losses, key=losses.get)
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert evidence.verdict == Verdict.FAIL
    assert "training stopped early" in evidence.summary
    assert broken(evidence) & {"climb_of_training_loss", "losses_not_a_number", "spikes_in_a_row"}


def test_the_same_base_at_a_sane_rate_is_not_stopped(lab, learned_base):
    run = lab(base=learned_base, learning_rate=0.002, epochs=4)
    run.train()
    assert run.trained["stopped"] is None
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert broken(evidence) == {"live_tracking"}


def test_steps_of_fewer_rows_than_planned_are_counted(lab, monkeypatch):
    def smaller(*given):
        arguments = sft_config(*given)
        arguments.per_device_train_batch_size //= 2
        return arguments

    monkeypatch.setattr("tuneline.training.loop.trainer.sft_config", smaller)
    run = lab(epochs=2)
    run.train()
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert "gradient_accumulation.steps_of_other_size" in broken(evidence)


# Eight rows and a high rate: the validation loss turns while the training loss falls.
BY_HEART = {"epochs": 100, "effective_batch": 4, "learning_rate": 0.03, "evaluations": 20}
# The base knows the task already, and the rate is too low to move anything.
NO_GAIN = {"learning_rate": 1e-6, "epochs": 8, "evaluations": 8}


@pytest.mark.parametrize(
    ("settings", "rule", "name"),
    [
        ({**BY_HEART, "r": 32, "overfit_ratio": 1.05}, "overfit", "last_over_best_validation_loss"),
        (NO_GAIN, "plateau", "passes_without_gain"),
    ],
)
def test_a_training_that_gains_nothing_more_stops_early_and_warns(
    lab, learned_base, settings, rule, name
):
    if rule == "overfit":
        run = lab(**settings)
        run.leave_rows(*make_rows(train=8, validation=12))
    else:
        run = lab(base=learned_base, **settings)
    run.train()
    document = run.trained
    assert document["stopped"]["rule"] == rule
    assert document["steps"] < document["steps_planned"]
    checkpoints = run.document("train", "checkpoints.json")
    losses = {e["step"]: e["eval_loss"] for e in checkpoints["evaluations"]}
    assert checkpoints["best_step"] == min(losses, key=losses.get)
    evidence = run.execute("loss_monitoring", loss_monitoring.run)
    assert evidence.verdict in (Verdict.WARN, Verdict.FAIL)
    assert name in broken(evidence)
    assert "stopped early" in evidence.summary


def test_a_killed_training_resumes_and_ends_the_same(lab, tmp_path):
    """From a checkpoint of the clock first, then from any newer one."""
    settings = {"epochs": 20, "evaluations": 3, "dropout": 0.1, "checkpoint_minutes": 0.004}
    run = lab(name="killed", **settings)
    run.prepare()
    newest = 0
    for passes in ((30, 60, 90), ()):
        process = start_training(run.run.uri, tmp_path / "log")
        before = newest
        while newest == before or newest in passes:
            assert process.is_alive()
            time.sleep(0.01)
            newest = run.checkpoint
        process.kill()
        process.join()
    run.resume()
    document = run.trained
    assert newest <= document["resumed_from"] < 90
    assert document["steps"] == document["steps_planned"] == 90
    evaluations = run.document("train", "checkpoints.json")["evaluations"]
    assert [e["step"] for e in evaluations] == [0, 30, 60, 90]

    whole = lab(name="whole", **settings)
    whole.train()
    run.assert_trained_like(whole, tolerance=1e-5)
    interrupted = run.history
    assert [e["step"] for e in interrupted if "loss" in e] == list(range(1, 91))
    seconds = [e["seconds"] for e in interrupted]
    assert seconds == sorted(seconds)


def test_history_holds_what_json_can_not(lab):
    log = [
        {"loss": float("nan"), "step": 1, "epoch": 0.1},
        {"eval_loss": float("inf"), "eval_loss_error": 0.1, "step": 1},
        {"train_runtime": 3.0, "step": 1},
    ]
    ctx = lab().context("train")
    HISTORY.write(ctx, history_of(log))
    assert read_history(HISTORY.path(ctx)) == [
        {"step": 1, "loss": "nan"},
        {"step": 1, "eval_loss": "inf", "eval_loss_error": 0.1},
    ]
