"""The memory model counts what autograd keeps, and the limit is what the machine leaves."""

import random

import pytest

from tuneline.errors import UserError
from tuneline.training.loop.base_weights import LoraSettings
from tuneline.training.loop.rows import EncodedRow
from tuneline.training.memory.limit import FREE_SHARE, cgroup_free, memory_limit, quantity
from tuneline.training.memory.micro_batches import micro_batches
from tuneline.training.memory.predict import GIB, Shape, largest_shape, predict

LORA = LoraSettings(
    r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "up_proj"], rslora=False, dora=False
)


def rows(count, tokens=64, learned=16):
    """Rows that share no beginning."""
    rng = random.Random(3)
    mask = tuple([False] * (tokens - learned) + [True] * learned)
    return [
        EncodedRow(f"row-{i}", tuple(rng.randrange(3, 400) for _ in range(tokens)), mask, 1.0)
        for i in range(count)
    ]


def living(parts):
    return parts.activations + parts.logits + parts.backward


def test_activations_grow_with_the_batch_and_weights_do_not(tiny_base):
    small = predict(tiny_base, LORA, rows(2), precision="fp32")
    large = predict(tiny_base, LORA, rows(4), precision="fp32")
    assert living(large) == pytest.approx(2 * living(small), rel=0.05)
    assert (large.weights, large.adapter) == (small.weights, small.adapter)
    assert small.optimiser == 2 * small.adapter == 2 * 2 * 4 * (128 + 192) * 4
    assert large.total > small.total


def test_a_beginning_that_rows_share_is_held_once(tiny_base):
    apart = rows(4)
    start = apart[0].ids[:40]
    alike = [EncodedRow(r.row_id, start + r.ids[40:], r.learned, 1.0) for r in apart]
    shared = predict(tiny_base, LORA, alike, precision="fp32")
    assert living(shared) < 0.7 * living(predict(tiny_base, LORA, apart, precision="fp32"))
    # On a GPU rows are padded, so nothing is shared.
    padded = predict(tiny_base, LORA, alike, precision="fp32", device="cuda")
    assert living(padded) > living(shared)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_living_storages_of_the_prediction_are_those_of_the_real_step(tiny_base, checkpointing):
    import torch

    from tuneline.training.cpu.lora_products import fuse_lora
    from tuneline.training.loop.base_weights import attach_lora, load_base
    from tuneline.training.loop.rows import as_batch
    from tuneline.training.loop.token_loss import add_labelled_head, weighted_sum
    from tuneline.training.memory.step_allocations import StorageTrace

    parts = predict(tiny_base, LORA, rows(4), precision="fp32", checkpointing=checkpointing)
    base = load_base(tiny_base, "cpu", precision="fp32")
    tuned = attach_lora(base, LORA).train()
    add_labelled_head(tuned.get_base_model())
    fuse_lora(tuned)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.enable_input_require_grads()
    batch = as_batch(torch, rows(4), 0)
    names = ("input_ids", "attention_mask", "labels")
    with StorageTrace([*tuned.parameters(), *tuned.buffers(), *batch.values()]) as trace:
        inputs = {name: batch[name] for name in names}
        outputs = tuned(**inputs, use_cache=False, fused_lm_head=True)
        weighted_sum(outputs, batch["weight"]).backward()
    assert trace.peak().total() == pytest.approx(living(parts), rel=0.03)


def test_a_prediction_leaves_nothing_behind_for_a_real_step(tiny_base):
    import torch

    from tuneline.training.cpu.packed_rows import _later

    predict(tiny_base, LORA, rows(2), precision="fp32")
    assert type(_later(64, 0)) is torch.Tensor


def test_dropout_costs_and_checkpointing_and_4bit_save(tiny_base):
    batch = rows(4)
    plain = predict(tiny_base, LORA, batch, precision="fp32")
    dropout = LORA.model_copy(update={"dropout": 0.1})
    assert living(predict(tiny_base, dropout, batch, precision="fp32")) > living(plain)
    redone = predict(tiny_base, LORA, batch, precision="fp32", checkpointing=True)
    assert living(redone) < 0.8 * living(plain)
    narrow = predict(tiny_base, LORA, batch, precision="bf16")
    four_bit = predict(tiny_base, LORA, batch, precision="bf16", qlora=True)
    assert four_bit.weights < narrow.weights < plain.weights


def test_a_validation_pass_counts_where_it_needs_more_than_a_step(tiny_base):
    alone = predict(tiny_base, LORA, rows(1), precision="fp32")
    assert alone.validation == 0
    assert predict(tiny_base, LORA, rows(4), precision="fp32", validation=rows(2)).validation == 0
    wide = rows(16, learned=60)
    found = predict(tiny_base, LORA, rows(1), precision="fp32", validation=wide)
    # Sixteen rows' logits at once, twice.
    assert found.validation > 16 * 59 * 400 * 4


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
