"""The loss on learned tokens is the plain loss, and what is logged of it is the task's."""

import pytest
import torch
from tests.lab.training_runs import MAX_TOKENS, make_rows

from tuneline.data.tables.rows import write_dataset
from tuneline.models import load_tokenizer
from tuneline.training.loop.model import load_unquantised
from tuneline.training.loop.rows import IGNORED, as_batch, encode_split
from tuneline.training.loop.token_loss import (
    add_labelled_head,
    row_losses,
    target_weight,
    weighted_sum,
)
from tuneline.training.loop.trainer import TaskLoss

FEATURES = ("input_ids", "attention_mask", "labels")


@pytest.fixture(scope="module")
def rows(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "dataset.parquet"
    write_dataset(path, *make_rows())
    return encode_split(path, "train", load_tokenizer(tiny_base), "tokenizer", MAX_TOKENS)


@pytest.fixture
def model(tiny_base):
    model = load_unquantised(tiny_base)
    add_labelled_head(model)
    return model


def plain_losses(model, batch):
    features = {name: batch[name] for name in FEATURES[:2]}
    log_probs = model(**features).logits.double()[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    found = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -found * (labels != IGNORED)


def test_the_head_on_learned_tokens_gives_the_plain_loss(model, rows):
    batch = as_batch(torch, rows[:6], 0)
    outputs = model(**{name: batch[name] for name in FEATURES}, fused_lm_head=True)
    expected = plain_losses(model, batch)
    assert expected.shape[1] + 1 == batch["input_ids"].shape[1]
    assert torch.allclose(-outputs["log_probs"].double(), expected, atol=1e-5)
    weighted = (expected.sum(1) * batch["weight"]).sum()
    assert float(weighted_sum(outputs, batch)) == pytest.approx(float(weighted), 1e-6)
    targets = sum(row.targets * row.weight for row in rows[:6])
    assert float(target_weight([batch])) == pytest.approx(targets)


def test_a_batch_without_learned_tokens_has_no_loss_and_still_a_gradient(model, rows):
    batch = as_batch(torch, rows[:2], 0)
    batch["labels"][:] = IGNORED
    outputs = model(**{name: batch[name] for name in FEATURES}, fused_lm_head=True)
    loss = weighted_sum(outputs, batch)
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_row_losses_do_not_depend_on_the_batch(model, rows):
    def measured(batch):
        return row_losses(model, rows, batch=batch, pad_id=0, device="cpu", precision="fp32")

    one, many = measured(1), measured(7)
    assert one.sums == pytest.approx(many.sums, rel=1e-5)
    expected = plain_losses(model, as_batch(torch, rows, 0)).sum(1)
    assert one.sums == pytest.approx(expected.tolist(), rel=1e-5)


def micro_batch(losses, weights, rehearsal):
    """A micro-batch whose row i has `len(losses[i])` learned tokens with these losses."""
    width = max(map(len, losses))
    log_probs = torch.zeros(len(losses), width)
    labels = torch.full((len(losses), width + 1), IGNORED)
    for row, values in enumerate(losses):
        log_probs[row, : len(values)] = -torch.tensor(values)
        labels[row, 1 : 1 + len(values)] = 5
    of_rows = {"weight": torch.tensor(weights), "rehearsal": torch.tensor(rehearsal)}
    return {"labels": labels, **of_rows}, {"log_probs": log_probs}


def test_the_loss_of_the_task_leaves_rehearsal_rows_out():
    watched = TaskLoss()
    watched.add(*micro_batch([[1.0, 3.0], [9.0]], [1.0, 3.0], [False, True]))
    watched.add(*micro_batch([[2.0], [8.0, 8.0]], [2.0, 1.0], [False, True]))
    # Tokens of 1 and 3 nats at weight 1, one of 2 nats at weight 2.
    assert watched.take() == pytest.approx((1 + 3 + 2 * 2) / 4)
    assert watched.rows == 4
    watched.add(*micro_batch([[9.0]], [3.0], [True]))
    assert watched.take() is None
