"""The base in 4 bits trains: its layers pass gradients on, also after an evaluation."""

import torch

from tuneline.training.loop.base_weights import load_base


def gradient(model):
    """Gradient of the logits with respect to the embedded tokens."""
    model.train()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.float().square().sum().backward()
    return embedded.grad.float()


def test_an_evaluation_takes_no_gradient_from_4bit_layers(tiny_base):
    """bitsandbytes would change the layers to a layout without a backward pass."""
    model = load_base(tiny_base, "cpu", qlora=True, precision="bf16")
    before = gradient(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert torch.equal(gradient(model), before)
    assert before.norm() > 0
