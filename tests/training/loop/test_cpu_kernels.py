"""The kernels for CPUs leave out work and change nothing, and one setting switches them."""

import copy

import pytest
import torch
import transformers
from tests.lab.tiny_models import make_model

from tuneline.artifacts.training import LoraSettings
from tuneline.training.loop import cpu_kernels
from tuneline.training.loop.cpu_kernels import (
    ARCHITECTURES,
    can_share_prefixes,
    fuse_lora,
    lay_out,
    shares_prefixes,
)
from tuneline.training.loop.model import attach_lora, cast_frozen_linears
from tuneline.training.loop.rows import EncodedRow, as_batch
from tuneline.training.loop.token_loss import add_labelled_head, model_inputs, weighted_sum

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
NAMES |= {"olmo2": "Olmo2", "smollm3": "SmolLM3"}


def row(number, *parts, learned):
    ids = tuple(token for part in parts for token in part)
    mask = (False,) * (len(ids) - learned) + (True,) * learned
    return EncodedRow(f"row-{number}", ids, mask, 1.0 + number % 2)


@pytest.fixture(scope="module")
def rows():
    """Two system prompts, one of them in most rows."""
    one, other = range(10, 40), range(60, 85)
    return [
        row(0, one, range(100, 120), range(200, 212), learned=12),
        row(1, other, range(120, 128), range(212, 220), learned=8),
        row(2, one, range(140, 171), range(220, 225), learned=5),
        row(3, one, range(141, 171), range(225, 235), learned=10),
        row(4, other, range(129, 131), range(212, 220), learned=8),
        row(5, range(300, 309), learned=9),
    ]


def loss_and_gradients(model, rows):
    batch = as_batch(torch, rows, 0)
    features = model_inputs(batch)
    model.zero_grad()
    outputs = model(**features, use_cache=False, fused_lm_head=True)
    loss = weighted_sum(outputs, batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return outputs["log_probs"].detach(), gradients


def adapted(base, **settings):
    """A base with an adapter that is not zero."""
    known = {"r": 4, "alpha": 12, "dropout": 0.0, "target_modules": KINDS, "rslora": False}
    model = attach_lora(base, LoraSettings(**{**known, "dora": False, **settings}))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def models(folder, kind):
    """The same model with an adapter, once with packed rows and once padded."""
    made = []
    for packed in (True, False):
        torch.manual_seed(5)
        options = {"sliding_window": None} if kind == "mistral" else {}
        base = make_model(folder, NAMES[kind], tie_word_embeddings=False, **options)
        # The base has no adapter yet, so the switch moves nothing but the packing.
        add_labelled_head(base, cpu_kernels=packed)
        made.append(adapted(base))
    return made


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_losses_and_gradients_are_those_of_the_padded_batch(tmp_path, rows, kind):
    packed, padded = models(tmp_path, kind)
    assert shares_prefixes(packed)
    assert padded.config._attn_implementation == "sdpa"
    ours, our_gradients = loss_and_gradients(packed, rows)
    theirs, their_gradients = loss_and_gradients(padded, rows)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, gradient in their_gradients.items():
        assert torch.allclose(our_gradients[name], gradient, atol=2e-5, rtol=1e-4), name


def test_a_shared_prefix_is_there_once(rows):
    batch = as_batch(torch, rows, 0)
    layout = lay_out(batch["input_ids"], batch["attention_mask"])
    total = sum(len(r.ids) for r in rows)
    # The first prompt serves three rows, the second two.
    assert layout.ids.shape == layout.positions.shape == (1, total - 2 * 30 - 25)
    for number, entry in enumerate(rows):
        places = layout.places[number, : len(entry.ids)]
        assert layout.ids[0, places].tolist() == list(entry.ids)
        assert layout.positions[0, places].tolist() == list(range(len(entry.ids)))
    # Rows that are equal keep a token each.
    same = torch.arange(40).repeat(3, 1)
    assert lay_out(same, torch.ones_like(same)).ids.shape == (1, 39 + 3)


def test_plain_calls_of_the_model_are_as_before(tmp_path, rows):
    packed, padded = models(tmp_path, "llama")
    batch = as_batch(torch, rows, 0)
    features = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(packed(**features).logits[0], padded(**features).logits[0], atol=1e-5)


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("Mistral", {"sliding_window": 16}), ("Llama", {"attention_dropout": 0.1}), ("Gemma3", {})],
)
def test_other_attention_stays_padded_and_other_layers_pefts(tmp_path, architecture, options):
    name = f"{architecture}Config" if architecture != "Gemma3" else "Gemma3TextConfig"
    config = getattr(transformers, name)(**SIZES, **LAYERS, **options)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    assert not can_share_prefixes(model)
    for settings in ({"dropout": 0.1}, {"dora": True}):
        assert fuse_lora(lora_model(tmp_path, **settings)) == 0


LORA_IDS = torch.arange(40).reshape(2, 20) + 7


def lora_model(folder, kind="Llama", **settings):
    return adapted(make_model(folder, kind), **settings).train()


def adapter_gradients(model, precision="fp32"):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(input_ids=LORA_IDS, labels=LORA_IDS).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "settings"), [("Llama", {}), ("Qwen2", {}), ("Llama", {"rslora": True, "r": 16})]
)
def test_losses_and_gradients_are_pefts(tmp_path, kind, settings):
    plain = lora_model(tmp_path, kind, **settings)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 14
    theirs, their_gradients = adapter_gradients(plain)
    ours, our_gradients = adapter_gradients(fused)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) == 28
    for name, gradient in their_gradients.items():
        assert torch.allclose(our_gradients[name], gradient, atol=1e-6, rtol=1e-4), name


def test_bf16_rounds_no_worse_than_peft(tmp_path):
    exact = lora_model(tmp_path)
    _, wanted = adapter_gradients(exact)
    cast_frozen_linears(exact.get_base_model())
    for name, parameter in exact.named_parameters():
        if "lora_" in name:  # the adapter is put on after the cast, and stays in float32
            parameter.data = parameter.data.float()
    plain, fused = exact, copy.deepcopy(exact)
    fuse_lora(fused)
    _, theirs = adapter_gradients(plain, "bf16")
    _, ours = adapter_gradients(fused, "bf16")

    def error(found):
        return sum(float((found[n] - g).square().sum()) for n, g in wanted.items()) ** 0.5

    assert error(ours) < 1.2 * error(theirs)
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())


def test_the_adapter_can_still_be_switched_off_and_merged(tmp_path):
    plain = lora_model(tmp_path).eval()
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    with torch.no_grad():
        with plain.disable_adapter(), fused.disable_adapter():
            off = plain(input_ids=LORA_IDS).logits
            assert torch.equal(fused(input_ids=LORA_IDS).logits, off)
        on = fused(input_ids=LORA_IDS).logits
        assert not torch.allclose(on, off, atol=1e-3)
        merged = fused.merge_and_unload()
        assert torch.allclose(merged(input_ids=LORA_IDS).logits, on, atol=1e-4)


def test_an_input_that_changed_is_cast_again(tmp_path):
    model = lora_model(tmp_path)
    fuse_lora(model)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.ones(1, 3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = layer(x).clone()
        x.mul_(2)
        assert torch.allclose(layer(x), 2 * before, rtol=0.02)


@pytest.fixture
def used(monkeypatch):
    """The kernels that were put on a model."""
    found = set()
    for name in ("use_row_attention", "fuse_lora"):
        put_on = getattr(cpu_kernels, name)

        def noted(model, name=name, put_on=put_on):
            found.add(name)
            return put_on(model)

        monkeypatch.setattr(cpu_kernels, name, noted)
    return found


def test_training_without_the_kernels_gives_the_same_losses_and_adapter(lab, used):
    plain = lab("plain", cpu_kernels=False)
    plain.train()
    assert used == set()
    fast = lab("fast")
    fast.train()
    assert used == {"use_row_attention", "fuse_lora"}
    fast.assert_trained_like(plain, ("loss", "task_loss", "grad_norm", "eval_loss"))
