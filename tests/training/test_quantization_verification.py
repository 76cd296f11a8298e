"""4-bit is read from the loaded layers; a layer left out turns the verdict."""

import pytest
import torch
from tests.lab.runs import broken, value, values

from tuneline.errors import UserError
from tuneline.evidence import Verdict, conclude
from tuneline.statistics import RowLosses
from tuneline.training import quantization_verification
from tuneline.training.loop import model as loop_model
from tuneline.training.loop import token_loss
from tuneline.training.quantization_verification import judge, read_layers, read_model


@pytest.fixture
def verify(lab, monkeypatch):
    """Verify a 4-bit base whose settings were changed by hand."""

    def execute(**changes):
        plain = loop_model.nf4_config

        def other():
            config = plain()
            for name, setting in changes.items():
                setattr(config, name, setting)
            return config

        monkeypatch.setattr(loop_model, "nf4_config", other)
        run = lab(qlora=True)
        run.leave_plan()
        evidence = run.execute("quantization_verification", quantization_verification.run)
        return evidence, values(evidence), run

    return execute


def test_without_qlora_nothing_is_loaded(lab, monkeypatch):
    monkeypatch.setattr(token_loss.Validation, "of", None)
    evidence = lab().execute("quantization_verification", quantization_verification.run)
    assert evidence.verdict == Verdict.NOT_APPLICABLE
    assert value(evidence, "qlora") is False


def test_every_linear_layer_is_nf4(verify):
    evidence, found, run = verify()
    assert evidence.verdict == Verdict.PASS
    assert (found["layers_expected_4bit"], found["4bit_besides"]) == (14, 0)
    assert (found["quant_type"], found["compute_type"]) == ("nf4", "bfloat16")
    assert (found["double_quantisation"], found["block_sizes"]) == (True, "64")
    assert 4.1 < found["bits_per_weight"] < 4.2
    layers = run.document("quantization_verification", "layers.json")
    assert {layer["block_size"] for layer in layers} == {64}
    assert found["model_over_bf16"] < 0.8
    assert found["perplexity_ratio"] != 1.0


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("changes", "wrong", "shown"),
    [
        # A layer left out.
        ({"llm_int8_skip_modules": ["lm_head", UP]}, 1, ("first_layer_not_as_required", UP)),
        ({"bnb_4bit_quant_type": "fp4"}, 14, ("quant_type", "fp4")),
        ({"bnb_4bit_use_double_quant": False}, 14, ("double_quantisation", False)),
        ({"bnb_4bit_compute_dtype": torch.float32}, 14, ("compute_type", "float32")),
    ],
)
def test_another_4bit_type_fails(verify, changes, wrong, shown):
    evidence, found, _ = verify(**changes)
    assert evidence.verdict == Verdict.FAIL
    assert "layers_not_as_required" in broken(evidence)
    assert found["layers_not_as_required"] == wrong
    assert f"{wrong} of 14 linear layers are not" in evidence.summary
    assert found[shown[0]] == shown[1]


def test_a_base_that_was_not_quantised_at_all_fails(verify, monkeypatch):
    plain = loop_model.load_base

    def unquantised(path, device, *, qlora=False, precision):
        return plain(path, device, qlora=False, precision=precision)

    monkeypatch.setattr(token_loss, "load_base", unquantised)
    evidence, _, _ = verify()
    assert evidence.verdict == Verdict.FAIL
    wrong = "layers_not_as_required bits_per_weight saved_against_bf16 model_over_bf16"
    assert broken(evidence) >= set(wrong.split())


@pytest.fixture(scope="module")
def quantised(tiny_base):
    """Names of the linear layers, and the base in 4 bits."""
    names = loop_model.linear_modules(loop_model.shape_model(tiny_base))
    return names, loop_model.load_base(tiny_base, "cpu", qlora=True, precision="bf16")


def test_a_quantised_head_and_a_missing_layer_fail(quantised):
    names, model = quantised
    # One layer that should not be 4-bit, and one that should and is not there.
    layers = read_layers(model, [*names[1:], "model.layers.9.mlp.up_proj"])
    whole = read_model(model, layers)
    assert whole.others == (names[0],)
    found = judge(layers, whole, losses(20, 21, 22, 19), losses(20, 21, 22, 19), 1.5)
    assert broken(found) >= {"4bit_besides", "layers_not_as_required"}
    assert conclude(found) == Verdict.FAIL
    by_name = {m.name: m.value for m in found}
    assert by_name["first_layer_not_as_required"] == "model.layers.9.mlp.up_proj"


def test_memory_is_counted_from_the_tensors(quantised, tiny_base):
    names, model = quantised
    layers = read_layers(model, names)
    whole = read_model(model, layers)
    plain = loop_model.load_unquantised(tiny_base)
    parameters = sum(p.numel() for p in plain.parameters())
    assert whole.bytes_in_bf16 == 2 * parameters
    linear = sum(layer.parameters for layer in layers)
    # Half a byte a weight, one byte for 64 of them, and little for the scales of the scales.
    assert sum(layer.bytes for layer in layers) == pytest.approx(linear * (0.5 + 1 / 64), rel=0.01)


def losses(*sums):
    return RowLosses(tuple(map(float, sums)), (10,) * len(sums), (1.0,) * len(sums))


def test_a_visible_loss_of_precision_fails(quantised):
    names, model = quantised
    layers, plain = read_layers(model, names), losses(20, 21, 22, 19)
    whole = read_model(model, layers)
    assert conclude(judge(layers, whole, losses(21, 22, 23, 20), plain, 1.5)) == Verdict.PASS
    worse = judge(layers, whole, losses(26, 27, 28, 25), plain, 1.5)
    assert (broken(worse), conclude(worse)) == ({"perplexity_ratio"}, Verdict.FAIL)
    # A limit tighter than the noise is refused.
    with pytest.raises(UserError, match="tighter than the measured noise"):
        judge(layers, whole, losses(10, 30, 25, 12), losses(20, 18, 22, 19), 1.01)
