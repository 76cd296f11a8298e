"""The group of W4A16 fits every layer."""

import json

import pytest

from tuneline.errors import UserError
from tuneline.serving.engines.vllm.quantize import group_size


@pytest.mark.parametrize(
    ("sizes", "group"),
    [
        ({"hidden_size": 4096, "intermediate_size": 14336}, 128),
        # SmolLM2-135M
        ({"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}, 64),
        ({"hidden_size": 128, "intermediate_size": 96}, 32),
        # The attention's output has another width than the model.
        ({"hidden_size": 256, "intermediate_size": 256, "head_dim": 40}, 64),
    ],
)
def test_it_divides_the_inputs_of_all_layers(tmp_path, sizes, group):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8, **sizes}))
    assert group_size(tmp_path) == group


def test_a_width_that_no_group_divides_is_refused(tmp_path):
    config = {"num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"128, 128, 100 inputs.*deployment.variants"):
        group_size(tmp_path)
