"""Names and row order of Llama-type weights in GGUF."""

import numpy as np
import pytest

import gguf
from tuneline.errors import UserError
from tuneline.models.gguf_import import (
    PER_BLOCK,
    TOP_LEVEL,
    interleave_heads,
    split_heads,
    to_hf_name,
)

HF_NAMES = [f"{name}.weight" for name in TOP_LEVEL] + [
    f"model.layers.1.{name}.weight" for name in PER_BLOCK
]


@pytest.mark.parametrize("name", HF_NAMES)
@pytest.mark.parametrize("architecture", [gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2])
def test_names_agree_with_the_official_map(name, architecture):
    official = gguf.get_tensor_name_map(architecture, 2)
    assert to_hf_name(official.get_name(name, try_suffixes=(".weight",))) == name


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "rope_freqs.weight"])
def test_unknown_tensors_are_refused(name):
    with pytest.raises(UserError, match="does not belong to a Llama-type model"):
        to_hf_name(name)


def test_interleaving_pairs_the_halves_of_each_head():
    rows = np.arange(8)  # two heads of four: halves (0 1 | 2 3) and (4 5 | 6 7)
    assert interleave_heads(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    matrix = np.random.default_rng(0).normal(size=(24, 5))
    assert np.array_equal(split_heads(interleave_heads(matrix, 3), 3), matrix)
    assert not np.array_equal(interleave_heads(matrix, 3), matrix)
