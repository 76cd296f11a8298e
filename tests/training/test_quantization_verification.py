"""4-bit is read from the loaded layers; a layer left out turns the verdict."""

import pytest
from tests.training.training_lab import broken, value

from tuneline.errors import UserError
from tuneline.evidence import Verdict, conclude
from tuneline.training import base_weights, quantization_verification
from tuneline.training.quantization_verification import judge, read_layers
from tuneline.training.token_loss import RowLosses


@pytest.fixture
def qlora(lab):
    run = lab(qlora=True)
    run.leave_plan()
    return run


def test_without_qlora_it_does_not_apply(lab):
    evidence = lab().execute("quantization_verification", quantization_verification.run)
    assert evidence.verdict == Verdict.NOT_APPLICABLE


def test_every_linear_layer_is_nf4(qlora):
    evidence = qlora.execute("quantization_verification", quantization_verification.run)
    assert evidence.verdict == Verdict.PASS
    assert value(evidence, "layers_expected_4bit") == 14
    assert value(evidence, "quant_type") == "nf4"
    assert value(evidence, "compute_type") == "bfloat16"
    assert value(evidence, "double_quantisation") is True
    assert 4.1 < value(evidence, "bits_per_weight") < 4.2
    layers = qlora.document("quantization_verification", "layers.json")
    assert {layer["block_size"] for layer in layers} == {64}
    assert value(evidence, "perplexity_ratio") != 1.0


def test_a_layer_left_unquantised_fails(qlora, monkeypatch):
    plain = base_weights.nf4_config

    def skipping():
        config = plain()
        config.llm_int8_skip_modules = ["lm_head", "model.layers.1.mlp.up_proj"]
        return config

    monkeypatch.setattr(base_weights, "nf4_config", skipping)
    evidence = qlora.execute("quantization_verification", quantization_verification.run)
    assert evidence.verdict == Verdict.FAIL
    assert value(evidence, "layers_not_as_required") == 1
    assert value(evidence, "first_layer_not_as_required") == "model.layers.1.mlp.up_proj"
    assert value(evidence, "double_quantisation") is False


@pytest.mark.parametrize("change", ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant"])
def test_another_4bit_type_fails(tiny_base, monkeypatch, change):
    plain = base_weights.nf4_config

    def other():
        config = plain()
        setattr(config, change, "fp4" if change.endswith("type") else False)
        return config

    names = base_weights.linear_modules(base_weights.shape_model(tiny_base))
    model = base_weights.load_base(tiny_base, "cpu", qlora=True, precision="bf16")
    assert all(layer.as_required for layer in read_layers(model, names))
    monkeypatch.setattr(base_weights, "nf4_config", other)
    model = base_weights.load_base(tiny_base, "cpu", qlora=True, precision="bf16")
    assert not any(layer.as_required for layer in read_layers(model, names))


def losses(*sums):
    return RowLosses(tuple(map(float, sums)), (10,) * len(sums), (1.0,) * len(sums))


def test_a_visible_loss_of_precision_fails(tiny_base):
    names = base_weights.linear_modules(base_weights.shape_model(tiny_base))
    model = base_weights.load_base(tiny_base, "cpu", qlora=True, precision="bf16")
    layers = read_layers(model, names)
    plain = losses(20, 21, 22, 19)
    assert conclude(judge(layers, losses(21, 22, 23, 20), plain, 1.5)) == Verdict.PASS
    worse = judge(layers, losses(26, 27, 28, 25), plain, 1.5)
    assert {m.name for m in worse if m.ok is False} == {"perplexity_ratio"}
    assert conclude(worse) == Verdict.FAIL


def test_a_limit_tighter_than_the_noise_is_refused(tiny_base):
    model = base_weights.load_base(tiny_base, "cpu", qlora=True, precision="bf16")
    layers = read_layers(model, ["model.layers.0.mlp.up_proj"])
    with pytest.raises(UserError, match="tighter than the measured noise"):
        judge(layers, losses(10, 30, 25, 12), losses(20, 18, 22, 19), 1.01)


def test_what_breaks_is_named(qlora, monkeypatch):
    monkeypatch.setattr(quantization_verification, "COMPUTE_TYPE", "float32")
    evidence = qlora.execute("quantization_verification", quantization_verification.run)
    assert "layers_not_as_required" in broken(evidence)
    assert "14 of 14 linear layers are not" in evidence.summary
