"""The loss on learned tokens is the plain loss, and the mean and its error are right."""

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
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits.double()
    log_probs = logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    found = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -found * (labels != IGNORED)


def test_the_head_on_learned_tokens_gives_the_plain_loss(model, rows):
    batch = as_batch(torch, rows[:6], 0)
    features = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    outputs = model(**features, fused_lm_head=True)
    expected = plain_losses(model, batch)
    assert torch.allclose(-outputs["log_probs"].double(), expected, atol=1e-5)
    weighted = (expected.sum(1) * batch["weight"]).sum()
    assert float(weighted_sum(outputs, batch)) == pytest.approx(float(weighted), 1e-6)
    targets = sum(row.targets * row.weight for row in rows[:6])
    assert float(target_weight([batch])) == pytest.approx(targets)


def test_the_plain_forward_stays(model, rows):
    batch = as_batch(torch, rows[:2], 0)
    assert model(input_ids=batch["input_ids"]).logits.shape[-1] == model.config.vocab_size


def test_a_batch_without_learned_tokens_has_no_loss_and_still_a_gradient(model, rows):
    batch = as_batch(torch, rows[:2], 0)
    batch["labels"][:] = IGNORED
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        fused_lm_head=True,
    )
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
