"""Values after a shared text have the losses that they have one by one."""

import pytest
from tests.lab.tiny_models import make_model

from tuneline.evaluation.extraction.attempts import choice_losses, make_choice
from tuneline.models import load_tokenizer
from tuneline.serving.engines.divergence import ScoredRow, checkpoint_losses


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3"])
def test_losses_are_those_of_each_value_alone(tmp_path, architecture):
    sizes = {"sliding_window": 8, "head_dim": 16} if architecture == "Gemma3" else {}
    make_model(tmp_path, architecture, **sizes)
    tokenizer = load_tokenizer(tmp_path)

    def encode(texts):
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    before = "<|im_start|>user\nThe order of the quick brown fox has the number "
    values = ["10293", "88", "8", "lazy dog", "102"]
    choice = make_choice(encode, before, values)
    assert all(choice.endings)
    sequences = [[*choice.shared, *ending] for ending in choice.endings]
    assert sequences == encode([before + value for value in values])
    rows = [ScoredRow.from_place(ids, len(choice.shared)) for ids in sequences]
    alone = checkpoint_losses(tmp_path, rows, threads=1)
    (together,) = choice_losses(tmp_path, [choice], threads=1)
    assert together == pytest.approx(alone, abs=1e-3)
