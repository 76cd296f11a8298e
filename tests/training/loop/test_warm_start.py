"""A warm start continues the released adapter, and refuses one that does not fit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.lab.nights import release
from tests.lab.runs import broken, value
from tests.lab.training_runs import TrainingLab

from tuneline.artifacts.training import ADAPTER_WEIGHTS
from tuneline.errors import UserError
from tuneline.serving.engines.limits import ranks_asked
from tuneline.store import CorruptObject, sha256_file
from tuneline.training import train

WEIGHTS = f"adapter/{ADAPTER_WEIGHTS}"


def adapter_files(night):
    names = (WEIGHTS, "adapter/adapter_config.json")
    return {name: night.artifact("train", name) for name in names}


def lora_of(night):
    return night.document("lora_selection", "lora.json")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, tiny_base):
    """A trained run, and a copy of its folder."""
    night = TrainingLab(tmp_path_factory.mktemp("nights"), tiny_base, {"training": {"epochs": 4}})
    night.train()
    return night, shutil.copytree(night.root, tmp_path_factory.mktemp("kept") / "nights")


@pytest.fixture
def first(trained_once):
    """A trained run that is not released yet; what a test does to it is undone."""
    night, kept = trained_once
    yield night
    shutil.rmtree(night.root)
    shutil.copytree(kept, night.root)


@pytest.fixture
def released(first):
    """A trained run that is released."""
    release(first, adapter_files(first), lora=lora_of(first))
    return first


def next_night(night, base=None, run_id="night-2", **training):
    settings = {"training": {"warm_start": "released", "epochs": 2, **training}}
    return TrainingLab(night.root, base or night.base, settings, run_id)


def test_training_goes_on_from_the_released_adapter(released):
    best = min(released.validation_losses)
    sha256 = sha256_file(released.artifact("train", WEIGHTS))
    night = next_night(released)
    record = night.train()
    evidence = night.run.find_evidence("lora_selection")
    assert evidence.verdict == "pass"
    assert "it starts from the weights of the released version test" in evidence.summary
    assert value(evidence, "started_from_sha256") == sha256
    assert night.validation_losses[0] == pytest.approx(best, abs=1e-4)
    assert best < released.validation_losses[0] - 0.3
    start = night.trained["started_from"]
    assert start == lora_of(night)["started_from"]
    assert (start["version"], start["sha256"]) == ("test", sha256)
    assert start["uri"].endswith(f"/models/support-intents/test/{WEIGHTS}")
    assert value(record, "started_from_sha256") == sha256
    assert value(record, "started_from") == start["uri"]
    assert "from the released version test" in record.summary
    [ref] = [ref for ref in record.inputs if ref.name == f"released/{ADAPTER_WEIGHTS}"]
    assert (ref.uri, ref.sha256) == (start["uri"], sha256)
    # A new schedule, which begins at the top.
    rates = [entry["learning_rate"] for entry in night.history if "loss" in entry]
    assert rates[0] == pytest.approx(0.01, rel=0.1)
    assert rates[-1] < rates[0] / 2


def test_without_a_release_training_starts_cold_and_says_so(first, capsys):
    night = next_night(first)
    record = night.train()
    assert "no release of support-intents in" in capsys.readouterr().err
    assert lora_of(night)["started_from"] is None
    assert value(record, "started_from") == "new weights"
    assert night.validation_losses[0] == pytest.approx(first.validation_losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"r": 8}, "has r 4 where training.r asks for 8"),
        ({"alpha": 16}, "has alpha 8 where training.alpha asks for 16"),
        ({"rslora": True}, "has rslora False where training.rslora asks for True"),
        ({"target_modules": ["q_proj"]}, r"asks for \['q_proj'\]"),
    ],
)
def test_another_adapter_is_refused_before_training(released, training, message):
    night = next_night(released, **training)
    with pytest.raises(UserError, match=message) as refusal:
        night.leave_lora()
    assert "or set training.warm_start: none" in str(refusal.value)
    assert night.run.find_evidence("lora_selection") is None


def test_another_base_is_refused_before_training(released, learned_base):
    night = next_night(released, base=learned_base)
    with pytest.raises(UserError, match=r"was trained on .*name the same base_model"):
        night.leave_lora()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, name: weights.pop(name), "it lacks "),
        (lambda weights, name: weights.update({"x": torch.zeros(1)}), "x has no place"),
        (
            lambda weights, name: weights.update({name: torch.zeros(2, 3)}),
            r"has the shape \[2, 3\]",
        ),
    ],
)
def test_weights_of_other_shapes_are_refused_before_training(first, tmp_path, change, message):
    weights = load_file(first.artifact("train", WEIGHTS))
    change(weights, sorted(weights)[0])
    save_file(weights, tmp_path / "changed.safetensors")
    release(first, {WEIGHTS: tmp_path / "changed.safetensors"}, lora=lora_of(first))
    with pytest.raises(UserError, match=f"does not fit the base .*{message}"):
        next_night(first).leave_lora()


def test_changed_bytes_are_refused(released):
    stored = released.root / "store/models/support-intents/test" / WEIGHTS
    raw = stored.read_bytes()
    stored.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CorruptObject):
        next_night(released).leave_lora()


def test_an_adapter_is_found_among_the_artifacts_of_the_released_run(first):
    release(first, {}, lora=lora_of(first))
    night = next_night(first)
    night.leave_lora()
    start = lora_of(night)["started_from"]
    assert start["uri"].endswith(f"/runs/test/training/train/{WEIGHTS}")


def test_a_release_without_an_adapter_is_refused(first):
    release(first, {}, lora=lora_of(first))
    first.run.store.delete_prefix(first.run.step_key("train"))
    with pytest.raises(UserError, match="states no adapter, and its run left none"):
        next_night(first).leave_lora()


def test_the_released_rank_replaces_a_sweep(first):
    assert ranks_asked(next_night(first, sweep_r=[2, 8]).run) == [2, 8]
    release(first, adapter_files(first), lora=lora_of(first))
    night = next_night(first, run_id="night-3", r=16, sweep_r=[2, 8])
    assert ranks_asked(night.run) == []
    night.leave_lora()
    assert (lora_of(night)["r"], lora_of(night)["alpha"]) == (4, 8)
    summary = night.run.find_evidence("lora_selection").summary
    assert "whose rank is kept: none was tried" in summary
    # The engine is another one since, which loads the ranks that are asked for, but not this one.
    smaller = {"engine": "vllm", "max_lora_rank": 2}
    asked = {"warm_start": "released", "sweep_r": [1, 2]}
    night = TrainingLab(
        first.root, first.base, {"training": asked, "deployment": smaller}, "night-4"
    )
    evidence = night.execute("lora_selection")
    assert (evidence.verdict, broken(evidence)) == ("fail", {"rank_for_engine"})


def test_training_starts_from_the_pinned_release_whatever_is_released_meanwhile(released):
    night = next_night(released)
    night.prepare()
    pinned = lora_of(night)["started_from"]
    other = next_night(released, run_id="other", warm_start="none", seed=9)
    other.train()
    release(other, adapter_files(other), lora=lora_of(other), previous="test")
    night.resume()
    assert night.trained["started_from"] == pinned
    assert night.validation_losses[0] == pytest.approx(min(released.validation_losses), abs=1e-4)


def test_a_checkpoint_goes_before_the_released_weights(released, monkeypatch):
    night = next_night(released)
    night.prepare()
    night.killed_at_checkpoint()

    def refuse(*_):
        raise AssertionError("the released weights were loaded over a checkpoint")

    monkeypatch.setattr(train, "load_start", refuse)
    night.resume()
    assert night.trained["resumed_from"] == 3
    assert night.trained["started_from"]["version"] == "test"
    # What the first try measured before its first step is that of the released adapter.
    best = min(released.validation_losses)
    assert night.validation_losses[0] == pytest.approx(best, abs=1e-4)
