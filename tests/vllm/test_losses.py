"""vLLM's losses on given tokens are those of transformers, and show weights that are off."""

import shutil

import pytest
from tests.lab.tiny_task import conversation
from tests.vllm.reference import request

from tuneline.deployment.merging.checkpoints import checkpoint_losses
from tuneline.serving.engines import get_engine

ENGINE = get_engine("vllm")


@pytest.fixture(scope="module")
def rows(tiny):
    """Token ids of conversations; of each row the last tokens count, of two rows none does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.merged)
    texts = [
        tokenizer.apply_chat_template(conversation(number)[0], tokenize=False)
        for number in range(8)
    ]
    sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    scored = [[at >= len(ids) - 10 for at in range(len(ids))] for ids in sequences]
    prompt_only = [True] + [False] * (len(sequences[0]) - 1)
    return [*sequences, sequences[0], [5]], [*scored, prompt_only, [True]]


@pytest.fixture(scope="module")
def expected(tiny, rows):
    return checkpoint_losses(tiny.merged, *rows, threads=1)


def test_they_are_those_of_transformers(tiny, rows, expected):
    found = ENGINE.losses(tiny.merged, *rows, request(tiny.merged))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found[-2:] == [0, 0]
    assert min(found[:8]) > 0


def test_a_norm_that_is_a_little_off_is_seen(tiny, rows, expected, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(tiny.merged, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.02
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    found = ENGINE.losses(other, *rows, request(other))
    assert abs(sum(found) / sum(expected) - 1) > 1e-3


def test_rows_without_a_scored_token_start_nothing(tiny):
    assert ENGINE.losses(tiny.merged, [[5]], [[True]], request(tiny.merged)) == [0]
