"""One step of autograd gives what PEFT's layer gives."""

import copy

import pytest
import torch
from tests.lab.tiny_models import make_model

from tuneline.artifacts.training import LoraSettings
from tuneline.training.cpu.lora_products import fuse_lora
from tuneline.training.loop.base_weights import attach_lora, cast_frozen_linears

SETTINGS = {
    "r": 4,
    "alpha": 12,
    "dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "rslora": False,
    "dora": False,
}
IDS = torch.arange(40).reshape(2, 20) + 7


def adapted(folder, kind="Llama", **settings):
    model = attach_lora(make_model(folder, kind), LoraSettings(**{**SETTINGS, **settings}))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model.train()


def loss_and_gradients(model, precision="fp32"):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "settings"), [("Llama", {}), ("Qwen2", {}), ("Llama", {"rslora": True, "r": 16})]
)
def test_losses_and_gradients_are_pefts(tmp_path, kind, settings):
    plain = adapted(tmp_path, kind, **settings)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 14
    theirs, their_gradients = loss_and_gradients(plain)
    ours, our_gradients = loss_and_gradients(fused)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) == 28
    for name, gradient in their_gradients.items():
        assert torch.allclose(our_gradients[name], gradient, atol=1e-6, rtol=1e-4), name


def test_bf16_rounds_no_worse_than_peft(tmp_path):
    exact = adapted(tmp_path)
    _, wanted = loss_and_gradients(exact)
    cast_frozen_linears(exact.get_base_model())
    for name, parameter in exact.named_parameters():
        if "lora_" in name:  # the adapter is put on after the cast, and stays in float32
            parameter.data = parameter.data.float()
    plain, fused = exact, copy.deepcopy(exact)
    fuse_lora(fused)
    _, theirs = loss_and_gradients(plain, "bf16")
    _, ours = loss_and_gradients(fused, "bf16")

    def error(found):
        return sum(float((found[n] - g).square().sum()) for n, g in wanted.items()) ** 0.5

    assert error(ours) < 1.2 * error(theirs)
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())


def test_the_adapter_can_still_be_switched_off_and_merged(tmp_path):
    plain = adapted(tmp_path).eval()
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    with torch.no_grad():
        with plain.disable_adapter(), fused.disable_adapter():
            off = plain(input_ids=IDS).logits
            assert torch.equal(fused(input_ids=IDS).logits, off)
        on = fused(input_ids=IDS).logits
        assert not torch.allclose(on, off, atol=1e-3)
        merged = fused.merge_and_unload()
        assert torch.allclose(merged(input_ids=IDS).logits, on, atol=1e-4)


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"dora": True}])
def test_other_layers_stay_pefts(tmp_path, settings):
    assert fuse_lora(adapted(tmp_path, **settings)) == 0


def test_an_input_that_changed_is_cast_again(tmp_path):
    model = adapted(tmp_path)
    fuse_lora(model)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.ones(1, 3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = layer(x).clone()
        x.mul_(2)
        assert torch.allclose(layer(x), 2 * before, rtol=0.02)
