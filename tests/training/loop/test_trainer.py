"""What the trainer logs besides TRL's own."""

import pytest
import torch

from tuneline.training.loop.rows import IGNORED
from tuneline.training.loop.trainer import TaskLoss


def micro_batch(losses, weights, rehearsal):
    """A micro-batch whose row i has `len(losses[i])` learned tokens with these losses."""
    width = max(map(len, losses))
    log_probs = torch.zeros(len(losses), width)
    labels = torch.full((len(losses), width + 1), IGNORED)
    for row, values in enumerate(losses):
        log_probs[row, : len(values)] = -torch.tensor(values)
        labels[row, 1 : 1 + len(values)] = 5
    inputs = {
        "labels": labels,
        "weight": torch.tensor(weights),
        "rehearsal": torch.tensor(rehearsal),
    }
    return inputs, {"log_probs": log_probs}


def test_the_loss_of_the_task_leaves_rehearsal_rows_out():
    watched = TaskLoss()
    watched.add(*micro_batch([[1.0, 3.0], [9.0]], [1.0, 3.0], [False, True]))
    watched.add(*micro_batch([[2.0], [8.0, 8.0]], [2.0, 1.0], [False, True]))
    # Tokens of 1 and 3 nats at weight 1, one of 2 nats at weight 2.
    assert watched.take() == pytest.approx((1 + 3 + 2 * 2) / 4)
    watched.add(*micro_batch([[9.0]], [3.0], [True]))
    assert watched.take() is None
