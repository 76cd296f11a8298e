"""Sequences that share a prompt are evaluated together, with the losses that they have alone."""

import random

import numpy as np
import pytest
from tests.lab.tiny_models import make_model

from tuneline.gguf.export import export_gguf
from tuneline.serving.engines.llama_cpp import scoring as packing
from tuneline.serving.engines.llama_cpp.scoring import plan_batches, sequence_losses

SYSTEM = [400, 401, 402, 403]


def questions(count, seed=5):
    """Prompts with one beginning and two to four answers each; all tokens of answers count."""
    draw = random.Random(seed)
    sequences, scored = [], []
    for _ in range(count):
        prompt = SYSTEM + [draw.randrange(10, 480) for _ in range(draw.randint(3, 30))]
        for _ in range(draw.randint(2, 4)):
            answer = [draw.randrange(10, 480) for _ in range(draw.randint(1, 6))]
            sequences.append(prompt + answer)
            scored.append([False] * len(prompt) + [True] * len(answer))
    return sequences, scored


def test_prompts_are_evaluated_once_and_batches_stay_small():
    sequences, scored = questions(60)
    batches = plan_batches(sequences, scored)
    assert sorted(n for batch in batches for n in batch.targets) == list(range(len(sequences)))
    prompts = {tuple(s[: f.index(True)]) for s, f in zip(sequences, scored, strict=True)}
    # The last token of an answer predicts nothing that counts.
    answers = sum(sum(flags) - 1 for flags in scored)
    own = sum(len(prompt) - len(SYSTEM) for prompt in prompts)
    # The system turn is evaluated once for each batch.
    expected = own + answers + len(batches) * len(SYSTEM)
    assert sum(len(batch.tokens) for batch in batches) == expected
    assert max(len(batch.tokens) for batch in batches) <= packing.BATCH_TOKENS
    assert max(len(batch.targets) for batch in batches) <= packing.BATCH_SEQUENCES


def test_what_shares_nothing_is_evaluated_alone():
    sequences = [[1, 2, 3], [4, 5, 6], [4, 5, 7], [9], [1, 2]]
    scored = [[False, False, True]] * 3 + [[True], [False, False]]
    first, second = plan_batches(sequences, scored)
    assert first.targets == {0: [(0, 3)]}
    assert second.targets == {1: [(0, 6)], 2: [(0, 7)]}


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    make_model(folder / "hf")
    export_gguf(folder / "hf", folder / "tiny.gguf")
    return folder / "tiny.gguf"


def test_losses_are_those_of_each_sequence_alone(tiny_gguf):
    sequences, scored = questions(24)
    together = sequence_losses(tiny_gguf, sequences, scored)
    # In this order no two neighbours have a prompt in common.
    order = sorted(range(len(sequences)), key=lambda n: (n % 7, n))
    alone = sequence_losses(tiny_gguf, [sequences[n] for n in order], [scored[n] for n in order])
    expected = np.empty(len(order))
    expected[order] = alone
    assert together == pytest.approx(expected.tolist(), rel=3e-3)
