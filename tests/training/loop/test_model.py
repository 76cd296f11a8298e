"""The processor is set up as configured, and a 4-bit base keeps its gradients."""

import pytest
import torch

from tuneline.config import TrainingConfig
from tuneline.errors import UserError
from tuneline.training.loop import model as loop_model
from tuneline.training.loop.model import load_base


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
    ],
)
def test_bf16_is_native_only_where_the_processor_says_so(tmp_path, line, native):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: bf16 in a name\n{line}\n")
    assert loop_model.has_native_bf16(cpuinfo) is native
    assert loop_model.has_native_bf16(tmp_path / "none") is False


@pytest.mark.parametrize(
    ("settings", "device", "native", "precision"),
    [
        ({}, "cpu", False, "fp32"),
        ({}, "cuda", False, "bf16"),
        ({"precision": "bf16"}, "cpu", False, "bf16"),
        ({"qlora": True, "precision": "fp32"}, "cpu", False, "bf16"),
        ({}, "cpu", True, "bf16"),
        ({"precision": "fp32"}, "cpu", True, "fp32"),
    ],
)
def test_precision_is_chosen_by_the_processor_unless_configured(
    monkeypatch, settings, device, native, precision
):
    monkeypatch.setattr(loop_model, "has_native_bf16", lambda: native)
    assert loop_model.choose_precision(TrainingConfig(**settings), device) == precision


def test_threads_come_from_the_configuration_then_the_environment(monkeypatch):
    monkeypatch.setenv("TUNELINE_THREADS", "3")
    assert loop_model.training_threads(TrainingConfig()) == 3
    assert loop_model.training_threads(TrainingConfig(threads=1)) == 1
    monkeypatch.setenv("TUNELINE_THREADS", "many")
    with pytest.raises(UserError, match="TUNELINE_THREADS is 'many'"):
        loop_model.training_threads(TrainingConfig())
    monkeypatch.delenv("TUNELINE_THREADS")
    assert loop_model.training_threads(TrainingConfig()) >= 1


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
