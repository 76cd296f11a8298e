"""A model is packed only if the losses of its rows show that they do not see each other."""

import random

import pytest
import torch
import yaml
from tests.lab.tiny_models import make_model
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tuneline.artifacts.training import LoraSettings, Packing
from tuneline.config import TrainingConfig
from tuneline.training.loop import flat_batch
from tuneline.training.loop.base_weights import attach_lora, linear_modules
from tuneline.training.loop.packed_attention import (
    FLASH,
    attention_of,
    candidates,
    masked_limit,
    takes_limits,
)
from tuneline.training.loop.packs import pack_run
from tuneline.training.loop.rows import EncodedRow, as_batch, pad_token
from tuneline.training.loop.trainer import LabelledTokenTrainer, TrainerSettings
from tuneline.training.packing import check
from tuneline.training.packing.evidence import measured, sentence

TOLERANCE = 1e-4
PACKED = {
    "Llama": {},
    "Qwen2": {},
    # Local attention in one of two layers, over fewer tokens than a row has.
    "Gemma2": {"sliding_window": 8, "head_dim": 16},
    "Mistral": {"sliding_window": 8},
}
# Positions by distance from the start of the sequence (ALiBi), and a state that is carried on.
NOT_PACKED = {
    "Bloom": {},
    "Jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}


@pytest.fixture(scope="module")
def rows():
    """Rows that are very different in length, every other one with double weight."""
    draw = random.Random(3)
    return [
        EncodedRow(
            f"row-{number}",
            tuple(draw.randrange(3, 480) for _ in range(length)),
            tuple(i >= length // 2 for i in range(length)),
            1.0 + number % 2,
        )
        for number, length in enumerate([50, 12, 33, 20, 7, 41, 9, 5])
    ]


def adapted(folder, kind, **options):
    model = make_model(folder, kind, **options)
    model.config.use_cache = False
    lora = LoraSettings(
        r=4, alpha=8, dropout=0.0, target_modules=linear_modules(model), rslora=False, dora=False
    )
    torch.manual_seed(5)
    model = attach_lora(model, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return model


def choose(model, rows, setting="on", share=100.0, **options):
    known = {"device": "cpu", "precision": "fp32", "pad_id": 0, **options}
    return check.choose_packing(model, rows, setting=setting, share=share, **known)


def step(model, folder, rows, packing, limit=70):
    """Loss and gradients of one optimiser step of the trainer, in packs or micro-batches of two."""
    from tuneline.models import load_tokenizer

    tokenizer = load_tokenizer(folder)
    trainer = LabelledTokenTrainer(
        model=model,
        tokenizer=tokenizer,
        settings=TrainerSettings(folder / "t", 2, 4, 1, "fp32", "cpu", packing=packing),
        config=TrainingConfig(cpu_kernels=False),
        rows=rows,
        validation=[],
        packs=pack_run([len(r.ids) for r in rows], 8, 1, limit) if packing.packed else None,
    )
    assert trainer.pad_id == pad_token(tokenizer)
    loss = 0.0
    batches = list(trainer.get_train_dataloader())
    items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    model.zero_grad()
    for batch in batches:
        loss += float(trainer.training_step(model, batch, items))
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss, found, len(batches)


@pytest.mark.parametrize("kind", PACKED)
def test_losses_and_gradients_are_those_of_padded_rows(tmp_path, rows, kind):
    model = adapted(tmp_path, kind, **PACKED[kind])
    packing = choose(model, rows)
    assert packing.packed, packing.reason
    assert packing.loss_difference < TOLERANCE
    assert packing.neighbour_difference < TOLERANCE
    theirs, their_gradients, micro_batches = step(model, tmp_path, rows, Packing())
    assert micro_batches == 4
    ours, our_gradients, shares = step(model, tmp_path, rows, packing)
    assert shares == 1
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).norm() < TOLERANCE * gradient.norm(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", NOT_PACKED)
def test_architectures_that_do_not_keep_rows_apart_are_padded(tmp_path, rows, kind, precision):
    packing = choose(adapted(tmp_path, kind, **NOT_PACKED[kind]), rows, precision=precision)
    assert not packing.packed
    assert packing.refused
    assert "does not keep rows apart" in packing.reason


@pytest.fixture
def leaky(monkeypatch):
    """A batch whose positions go on from row to row, so that no mask is made."""
    whole = flat_batch.flatten

    def flatten(batch, *, variable_lengths):
        laid = whole(batch, variable_lengths=variable_lengths)
        ids = laid.features["input_ids"]
        laid.features["position_ids"] = torch.arange(ids.shape[1])[None]
        return laid

    monkeypatch.setattr(flat_batch, "flatten", flatten)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_that_leaks_is_caught(tmp_path, rows, leaky, precision):
    packing = choose(adapted(tmp_path, "Llama"), rows, precision=precision)
    assert not packing.packed
    assert "a row's loss changes with its neighbour" in packing.reason


def test_an_attention_that_ignores_masks_is_caught(tmp_path, rows):
    model = adapted(tmp_path, "Llama")

    def ignores(module, query, key, value, attention_mask, **options):
        return sdpa_attention_forward(module, query, key, value, None, **options)

    AttentionInterface.register("ignores_masks", ignores)
    model.get_base_model().set_attn_implementation("ignores_masks")
    packing = choose(model, rows)
    assert not packing.packed
    assert packing.reason.startswith("ignores_masks: a row's loss changes with its neighbour")
    assert attention_of(model) == "ignores_masks"


def test_a_model_that_refuses_packed_rows_is_padded(tmp_path, rows, monkeypatch):
    model = adapted(tmp_path, "Llama")
    whole = model.get_base_model().forward

    def forward(*args, **kwargs):
        if "position_ids" in kwargs:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        return whole(*args, **kwargs)

    monkeypatch.setattr(model.get_base_model(), "forward", forward)
    packing = choose(model, rows)
    assert "refused packed rows (TypeError: forward() got an unexpected" in packing.reason


def test_losses_that_are_off_in_another_way_are_caught():
    def fault(loss=0.0, neighbour=0.0, visible=1.0):
        return check.Comparison(loss, neighbour, visible, TOLERANCE).fault

    assert fault() is None
    assert "differ by 0.01 nats" in fault(loss=0.01)
    assert "changes with its neighbour" in fault(neighbour=float("nan"))
    # A check that could not see the fault it exists for.
    assert "nothing shows whether rows see each other" in fault(visible=1e-5)


def test_the_setting_decides_where_rows_are_packed(tmp_path, rows):
    model = adapted(tmp_path, "Llama")
    assert choose(model, rows, "off").reason == "training.packing is off"
    assert choose(model, rows, "auto").reason == "training.packing: auto packs on a GPU only"
    assert not choose(model, rows, "off").refused
    # On a GPU, without FlashAttention: up to what a mask over the pack is worth.
    limit = masked_limit(model)
    # Queries and outputs of 64, keys and values of 32, three products of 64 × 96, by 4 × 64.
    assert limit == (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) // (4 * 64)
    masked = check.candidates(model, "cuda", "fp32")
    assert masked == ["sdpa"]


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_the_setting_may_be_written_in_yaml_without_quotes(written, read):
    document = yaml.safe_load(f"packing: {written}")
    assert TrainingConfig.model_validate(document).packing == read


def test_auto_leaves_packs_that_are_too_long_for_a_mask_padded(tmp_path, rows, monkeypatch):
    model = adapted(tmp_path, "Llama")
    tried = []

    def attempt(model, rows, attention, **options):
        tried.append(attention)
        return check.Comparison(0.0, 0.0, 1.0, TOLERANCE), None

    monkeypatch.setattr(check, "_attempt", attempt)
    short = choose(model, rows, "auto", share=100, device="cuda")
    assert short.packed
    assert short.limit == masked_limit(model)
    assert tried == ["sdpa"]
    long = choose(model, rows, "auto", share=5000, device="cuda")
    assert not long.packed
    assert "up to 120 tokens, and an optimiser step has 5,000" in long.reason
    assert choose(model, rows, "on", share=5000, device="cuda").packed


def test_flash_attention_comes_first_where_it_is_installed(tmp_path, monkeypatch):
    model = adapted(tmp_path, "Llama")
    assert candidates(model, "cuda", "bf16") == ["sdpa"]
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    assert candidates(model, "cuda", "bf16") == [FLASH, "sdpa"]
    assert candidates(model, "cuda", "fp32") == candidates(model, "cpu", "bf16") == ["sdpa"]
    assert takes_limits(FLASH)
    assert not takes_limits("sdpa")


def test_the_check_looks_at_a_long_a_short_and_a_middling_row(rows):
    long = EncodedRow("long", tuple(range(300)), (True,) * 300, 1.0)
    picked = check.pick_rows([*rows, long])
    assert [len(row.ids) for row in picked] == [check.MOST_TOKENS, 5, 20]
    assert picked[0].ids == long.ids[-check.MOST_TOKENS :]
    assert len(as_batch(torch, check.pick_rows(rows[:1]), 0)["input_ids"]) == check.ROWS


def test_the_evidence_says_how_and_why():
    packed = Packing(packed=True, attention="sdpa", loss_difference=1e-7, neighbour_difference=0.0)
    found = {m.name: m for m in measured(packed, {"padding_share": 0.0}, "auto", 900)}
    assert found["packing"].value == "packed"
    assert found["pack_tokens"].value == 900
    assert found["packed_loss_difference"].value == 1e-7
    assert sentence(packed) == ", rows packed (sdpa)"
    padded = Packing(refused=True, reason="sdpa: its rows see each other")
    [asked] = [m for m in measured(padded, {}, "on") if m.name == "packing"]
    assert asked.ok is False
    assert asked.on_breach == "warn"
    [free] = [m for m in measured(padded, {}, "auto") if m.name == "packing"]
    assert free.ok is not False
    assert sentence(padded) == ", rows padded: sdpa: its rows see each other"
    assert sentence(Packing(reason="training.packing is off")) == ""
