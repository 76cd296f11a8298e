"""Perplexity, KL divergence and losses by the engine's own logits, alone and in batches."""

import random

import numpy as np
import pytest
import torch
from tests.lab.tiny_models import make_model

from tuneline.errors import TunelineError, UserError
from tuneline.gguf.export import export_gguf
from tuneline.serving.engines.divergence import compare_logits, rows_of
from tuneline.serving.engines.llama_cpp import lib as llama_cpp_lib
from tuneline.serving.engines.llama_cpp import scoring
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel
from tuneline.serving.engines.llama_cpp.scoring import (
    perplexity_and_kl,
    plan_batches,
    sequence_losses,
    tokenize_texts,
)

SEQUENCES = [[int(t) for t in np.random.default_rng(i).integers(3, 480, 40)] for i in range(5)]
ROWS = [(ids, 1) for ids in SEQUENCES]


def test_the_formula():
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]], np.float32)) + 3
    before, after, kl, same = compare_logits(reference, other, ([9, 0, 2], 1))
    assert before == pytest.approx([np.log(2), np.log(10)])
    assert after == pytest.approx([np.log(4), np.log(10)])
    assert kl == pytest.approx([0.25 * np.log(2), 0.0], abs=1e-6)
    assert same.tolist() == [False, True]


def test_a_file_against_itself(tiny_gguf):
    found = perplexity_and_kl(tiny_gguf, tiny_gguf, ROWS)
    assert found.tokens == 5 * 39
    assert found.mean_kl == 0
    assert found.same_top_token == 1
    assert found.perplexity == found.reference_perplexity


def test_perplexity_equals_transformers(tmp_path):
    model = make_model(tmp_path / "hf")
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf", dtype="f32")
    losses = []
    with torch.no_grad():
        for sequence in SEQUENCES:
            ids = torch.tensor([sequence])
            losses.append(float(model(ids, labels=ids).loss))
    found = perplexity_and_kl(tmp_path / "m.gguf", tmp_path / "m.gguf", ROWS)
    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def test_only_answers_are_scored(tiny_gguf):
    found = perplexity_and_kl(tiny_gguf, tiny_gguf, rows_of(SEQUENCES, [30] * 5))
    assert found.tokens == 5 * 10


def test_losses_of_marked_tokens(tiny_gguf):
    marked = [[False] * 10 + [True] * 30] * 5
    found = sequence_losses(tiny_gguf, SEQUENCES, marked)
    same = perplexity_and_kl(tiny_gguf, tiny_gguf, rows_of(SEQUENCES, [10] * 5))
    assert np.exp(sum(found) / (5 * 30)) == pytest.approx(same.perplexity, rel=1e-6)
    # The first token is predicted by nothing.
    assert sequence_losses(tiny_gguf, SEQUENCES[:1], [[True] + [False] * 39]) == [0.0]


def test_another_model_is_far_away(tiny_gguf, tmp_path):
    make_model(tmp_path / "hf", initializer_range=0.3)
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    found = perplexity_and_kl(tiny_gguf, tmp_path / "m.gguf", ROWS)
    assert found.mean_kl > 0.5
    assert found.same_top_token < 0.5


def test_what_can_not_be_compared(tmp_path):
    with pytest.raises(UserError, match="no token to score"):
        rows_of([[5]], [0])
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(UserError, match="can't load"):
        tokenize_texts(tmp_path / "text.gguf", ["a"])


def test_a_crash_in_the_engine_does_not_take_this_process(tiny_gguf):
    # A token id outside the vocabulary ends llama.cpp or makes it refuse; either is one sentence.
    with pytest.raises(TunelineError, match=r"llama\.cpp"):
        perplexity_and_kl(tiny_gguf, tiny_gguf, [([5, 6, 10**6], 1)])


def test_another_library_layout_is_refused(monkeypatch):
    changed = {**llama_cpp_lib._CONTEXT_DEFAULTS, "n_ctx": 4096}
    monkeypatch.setattr(llama_cpp_lib, "_CONTEXT_DEFAULTS", changed)
    with pytest.raises(TunelineError, match=r"another llama\.cpp interface"):
        LlamaLibrary()


def test_sequences_that_do_not_fit(tiny_gguf):
    with LlamaModel(LlamaLibrary(), tiny_gguf, context=16) as model:
        with pytest.raises(UserError, match="17 tokens does not fit"):
            model.logits(list(range(3, 20)))
        first = model.logits([3, 4, 5])
        model.logits([9, 9, 9, 9])
        # Nothing of one sequence is left for the next.
        assert np.array_equal(model.logits([3, 4, 5]), first)


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
    assert max(len(batch.tokens) for batch in batches) <= scoring.BATCH_TOKENS
    assert max(len(batch.targets) for batch in batches) <= scoring.BATCH_SEQUENCES


def test_what_shares_nothing_is_evaluated_alone():
    sequences = [[1, 2, 3], [4, 5, 6], [4, 5, 7], [9], [1, 2]]
    scored = [[False, False, True]] * 3 + [[True], [False, False]]
    first, second = plan_batches(sequences, scored)
    assert first.targets == {0: [(0, 3)]}
    assert second.targets == {1: [(0, 6)], 2: [(0, 7)]}


def test_losses_are_those_of_each_sequence_alone(tiny_gguf):
    sequences, scored = questions(24)
    together = sequence_losses(tiny_gguf, sequences, scored)
    # In this order no two neighbours have a prompt in common.
    order = sorted(range(len(sequences)), key=lambda n: (n % 7, n))
    alone = sequence_losses(tiny_gguf, [sequences[n] for n in order], [scored[n] for n in order])
    expected = np.empty(len(order))
    expected[order] = alone
    assert together == pytest.approx(expected.tolist(), rel=3e-3)
