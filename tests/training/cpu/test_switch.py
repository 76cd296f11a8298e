"""One setting switches the CPU kernels, and training comes to the same without them."""

import pytest
import torch

from tuneline.training.cpu import lora_products, packed_rows

# Float32 sums in another order, over nine steps of Adam: losses in nats, weights absolute.
TOLERANCE = 1e-4


@pytest.fixture
def used(monkeypatch):
    """The kernels that were put on a model."""
    found = set()
    for module, name in ((packed_rows, "use_row_attention"), (lora_products, "fuse_lora")):
        put_on = getattr(module, name)

        def noted(model, name=name, put_on=put_on):
            found.add(name)
            return put_on(model)

        monkeypatch.setattr(module, name, noted)
    return found


def test_training_without_the_kernels_gives_the_same_losses_and_adapter(lab, used):
    plain = lab("plain", cpu_kernels=False)
    plain.train()
    assert used == set()
    fast = lab("fast")
    fast.train()
    assert used == {"use_row_attention", "fuse_lora"}

    for name in ("loss", "task_loss", "grad_norm", "eval_loss"):
        ours, theirs = ([e[name] for e in r.history if name in e] for r in (fast, plain))
        assert len(ours) > 2
        assert ours == pytest.approx(theirs, abs=TOLERANCE), name
    assert fast.adapter.keys() == plain.adapter.keys()
    for name, weight in plain.adapter.items():
        assert torch.allclose(fast.adapter[name], weight, atol=TOLERANCE), name
