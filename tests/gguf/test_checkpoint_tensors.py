"""The safetensors reader."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tuneline.errors import UserError
from tuneline.gguf.export import read_header


def test_every_float_type_reads_as_torch_does(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(7).to(torch.float16),
        "c": torch.randn(2, 2, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = {stored.name: stored for stored in read_header(tmp_path / "model.safetensors")}
    assert list(found) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(found[name].float32(), tensor.to(torch.float32).numpy())


def test_quantised_weights_are_refused(tmp_path):
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "q.safetensors")
    (stored,) = read_header(tmp_path / "q.safetensors")
    with pytest.raises(UserError, match="dequantised first"):
        stored.float32()


def test_a_file_cut_short_is_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({"w": torch.randn(100)}, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UserError, match="cut short"):
        list(read_header(cut))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not a safetensors file at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        list(read_header(other))
