"""The memory model counts what autograd keeps, and the limit is what the machine leaves."""

import pytest

from tuneline.errors import UserError
from tuneline.training.base_weights import LoraSettings
from tuneline.training.memory import GIB, Shape, largest_shape, micro_batches, predict
from tuneline.training.memory_limit import FREE_SHARE, cgroup_free, memory_limit, quantity

LORA = LoraSettings(
    r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "up_proj"], rslora=False, dora=False
)


def test_activations_grow_with_the_batch_and_weights_do_not(tiny_base):
    small = predict(tiny_base, LORA, Shape(2, 64, 32), precision="fp32")
    large = predict(tiny_base, LORA, Shape(4, 64, 64), precision="fp32")
    assert large.activations == pytest.approx(2 * small.activations, rel=0.02)
    assert large.logits == 2 * small.logits
    assert (large.weights, large.adapter) == (small.weights, small.adapter)
    assert small.optimiser == 3 * small.adapter == 3 * 2 * 4 * (128 + 192) * 4
    assert large.total > small.total


def test_activations_of_the_prediction_are_those_of_the_real_model(tiny_base):
    import torch

    from tuneline.training.base_weights import attach_lora, load_base
    from tuneline.training.memory import _counting

    parts = predict(tiny_base, LORA, Shape(2, 64, 32), precision="fp32")
    model = attach_lora(load_base(tiny_base, "cpu", precision="fp32"), LORA).train()
    ids = torch.randint(3, 400, (2, 64))
    # Padded, as most batches are: transformers leaves a mask of ones alone out.
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    with _counting(model) as kept:
        hidden = model.get_base_model().base_model(input_ids=ids, attention_mask=mask)[0]
        logits = model.get_base_model().get_output_embeddings()(hidden[:, :16].reshape(32, -1))
        torch.nn.functional.cross_entropy(logits, torch.zeros(32, dtype=torch.long))
    assert sum(kept.values()) == pytest.approx(parts.activations, rel=0.05)


def test_dropout_costs_and_checkpointing_and_4bit_save(tiny_base):
    shape = Shape(4, 64, 64)
    plain = predict(tiny_base, LORA, shape, precision="fp32")
    dropout = LORA.model_copy(update={"dropout": 0.1})
    assert predict(tiny_base, dropout, shape, precision="fp32").activations > plain.activations
    redone = predict(tiny_base, LORA, shape, precision="fp32", checkpointing=True)
    assert redone.activations < 0.8 * plain.activations
    narrow = predict(tiny_base, LORA, shape, precision="bf16")
    four_bit = predict(tiny_base, LORA, shape, precision="bf16", qlora=True)
    assert four_bit.weights < narrow.weights < plain.weights


def test_micro_batches_divide_the_effective_batch():
    assert micro_batches(8, 1) == [8, 4, 2, 1]
    assert micro_batches(12, 2) == [6, 3, 2, 1]
    assert micro_batches(8, 3) == []


def test_the_largest_shape_is_the_longest_rows_together():
    assert largest_shape([5, 9, 7], [2, 3, 4], 2) == Shape(2, 9, 7)
    # Fewer rows than asked for: the longest is repeated.
    assert largest_shape([5, 9], [2, 3], 4) == Shape(4, 9, 2 + 3 + 3 + 3)


def test_the_limit_is_configured_or_a_share_of_the_tightest_bound(tmp_path):
    import torch

    assert memory_limit(torch, 1.5, "8Gi") == (int(1.5 * GIB), "training.memory_limit_gib")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")
    if torch.cuda.is_available():
        pytest.skip("the bounds of host memory bind on a CPU only")
    limit, source = memory_limit(torch, None, "8Gi", tmp_path)
    assert (limit, source) == (int(FREE_SHARE * 500000), "60% of the container's free memory")
    limit, source = memory_limit(torch, None, "100Ki", tmp_path)
    assert (limit, source) == (int(FREE_SHARE * 102400), "60% of pods.memory")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8Gi", 8 << 30), ("1.5G", 1_500_000_000), ("500k", 500_000), ("1e9", 10**9), ("7", 7)],
)
def test_quantities_are_read_as_kubernetes_reads_them(text, value):
    assert quantity(text) == value


def test_what_is_no_quantity_is_refused():
    with pytest.raises(UserError, match=r"pods\.memory 'much' is no quantity"):
        quantity("much")


def test_a_container_without_a_limit_is_not_a_limit(tmp_path):
    assert cgroup_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600000\n")
    assert cgroup_free(tmp_path) is None
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000\n")
    (old / "memory.usage_in_bytes").write_text("500\n")
    assert cgroup_free(tmp_path) == 1500
