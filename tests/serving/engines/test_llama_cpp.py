"""What only llama.cpp has: its checks, its launcher, losses and distances of GGUF files."""

import json
import random
import shutil
import sys

import httpx
import numpy as np
import pytest
from tests.lab.commands import call
from tests.lab.engines import llama_server
from tests.lab.tiny_models import make_model, make_tokenizer

from tuneline.errors import TunelineError, UserError
from tuneline.gguf.export import export_gguf
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.divergence import ScoredRow, compare_logits, log_softmax, rows_of
from tuneline.serving.engines.engine import read_facts
from tuneline.serving.engines.llama_cpp import lib as llama_cpp_lib
from tuneline.serving.engines.llama_cpp import scoring
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel
from tuneline.serving.engines.llama_cpp.scoring import (
    perplexity_and_kl,
    plan_batches,
    sequence_losses,
    tokenize_texts,
)

ENGINE = get_engine("llama_cpp")


def test_check(tiny_dir, tmp_path):
    found = ENGINE.check(read_facts(tiny_dir))
    assert found.compatible
    assert found.live
    assert "pre-tokenizer smollm" in found.reason
    other = shutil.copytree(tiny_dir, tmp_path / "other")
    make_tokenizer("unknown", other)
    found = ENGINE.check(read_facts(other))
    assert not found.compatible
    assert "wrong token ids" in found.reason
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["XForCausalLM"]}))
    assert "XForCausalLM" in ENGINE.check(read_facts(other)).reason


def test_a_missing_file_is_the_users_error(tmp_path):
    missing = tmp_path / "none.gguf"
    server = "tuneline.serving.engines.llama_cpp.launch"
    answer = call(sys.executable, "-m", server, "--model", missing, PYTHONPATH="include:.")
    assert answer.returncode == 2
    assert answer.stderr == f"error: {missing} does not exist\n"
    with pytest.raises(UserError, match="does not exist; name a GGUF file"):
        llama_server(missing).start()


def test_start_errors_name_the_cause(tmp_path, tiny_gguf):
    (tmp_path / "text.gguf").write_text("no model at all")
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-5000])
    for model, loras, words in (
        (tmp_path / "text.gguf", [], "expected 'GGUF'"),
        (tmp_path / "cut.gguf", [], "corrupted or incomplete"),
        (tiny_gguf, [tiny_gguf], r"general\.type to be 'adapter'"),
    ):
        with pytest.raises(TunelineError, match=words):
            llama_server(model, loras=loras).start()


def test_it_lets_no_page_read(engine):
    answer = httpx.get(f"{engine.base_url}/health", headers={"Origin": "http://evil.example"})
    assert answer.headers["access-control-allow-origin"] == "null"
    slots = httpx.get(f"{engine.base_url}/slots").json()
    assert [slot["n_ctx"] for slot in slots] == [512] * 4


def test_many_starts(tiny_gguf):
    """The line with its address may follow half a line of the engine's log."""
    for parallel in range(1, 9):
        with llama_server(tiny_gguf, parallel=parallel, start_seconds=30):
            pass


def test_the_formula():
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]], np.float32)) + 3
    before, after, kl, same = compare_logits(reference, other, ScoredRow([9, 0, 2], [1, 2]))
    assert before == pytest.approx([np.log(2), np.log(10)])
    assert after == pytest.approx([np.log(4), np.log(10)])
    assert kl == pytest.approx([0.25 * np.log(2), 0.0], abs=1e-6)
    assert same.tolist() == [False, True]


def test_only_marked_tokens_are_scored(tiny_gguf):
    rows = rows_of([list(range(3 + n, 43 + n)) for n in range(3)], [10] * 3)
    assert [row.places[0] for row in rows] == [10] * 3
    whole = perplexity_and_kl(tiny_gguf, tiny_gguf, rows)
    assert whole.tokens == 3 * 30
    losses = sequence_losses(tiny_gguf, rows)
    assert np.exp(sum(map(sum, losses)) / whole.tokens) == pytest.approx(whole.perplexity, rel=1e-6)
    # The first token is predicted by nothing.
    assert ScoredRow.marked([5, 6, 7], [True, False, True]).places == [2]
    with pytest.raises(UserError, match="no token to score"):
        rows_of([[5]], [0])


def test_another_model_is_far_away(tiny_gguf, tmp_path):
    make_model(tmp_path / "hf", initializer_range=0.3)
    export_gguf(tmp_path / "hf", tmp_path / "m.gguf")
    found = perplexity_and_kl(tiny_gguf, tmp_path / "m.gguf", rows_of([list(range(3, 43))], [1]))
    assert found.mean_kl > 0.5
    assert found.same_top_token < 0.5


def test_a_crash_in_the_engine_does_not_take_this_process(tiny_gguf, tmp_path):
    # A token id outside the vocabulary ends llama.cpp or makes it refuse; either is one sentence.
    with pytest.raises(TunelineError, match=r"llama\.cpp"):
        perplexity_and_kl(tiny_gguf, tiny_gguf, [ScoredRow([5, 6, 10**6], [1, 2])])
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(UserError, match="can't load"):
        tokenize_texts(tmp_path / "text.gguf", ["a"])


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
    rows = []
    for _ in range(count):
        prompt = SYSTEM + [draw.randrange(10, 480) for _ in range(draw.randint(3, 30))]
        for _ in range(draw.randint(2, 4)):
            answer = [draw.randrange(10, 480) for _ in range(draw.randint(1, 6))]
            rows.append(ScoredRow.from_place(prompt + answer, len(prompt)))
    return rows


def test_prompts_are_evaluated_once_and_batches_stay_small():
    rows = questions(60)
    batches = plan_batches(rows)
    assert sorted(n for batch in batches for n in batch.targets) == list(range(len(rows)))
    prompts = {tuple(row.ids[: row.places[0]]) for row in rows}
    # The last token of an answer predicts nothing that counts.
    answers = sum(len(row.places) - 1 for row in rows)
    own = sum(len(prompt) - len(SYSTEM) for prompt in prompts)
    # The system turn is evaluated once for each batch, as a prompt is that a batch ends in.
    tokens, cut = sum(len(batch.tokens) for batch in batches), 40 * len(batches)
    beginnings = {tuple(row.ids[:at]) for row in rows for at in range(1, row.places[-1] + 1)}
    assert len(beginnings) <= tokens <= own + answers + cut
    assert max(len(batch.tokens) for batch in batches) <= scoring.BATCH_TOKENS
    assert max(len(batch.targets) for batch in batches) <= scoring.BATCH_SEQUENCES


def test_what_shares_nothing_is_evaluated_alone():
    rows = [ScoredRow(ids, [2]) for ids in ([1, 2, 3], [4, 5, 6], [4, 5, 7])]
    first, second = plan_batches([*rows, ScoredRow([9], []), ScoredRow([1, 2], [])])
    assert first.targets == {0: [(0, 3)]}
    assert second.targets == {1: [(0, 6)], 2: [(0, 7)]}


def test_losses_are_those_of_each_sequence_alone(tiny_gguf):
    rows = questions(24)
    together = [sum(row) for row in sequence_losses(tiny_gguf, rows)]
    expected = []
    with LlamaModel(LlamaLibrary(), tiny_gguf, context=64) as model:
        for row in rows:
            known = log_softmax(model.logits(row.ids))
            expected.append(-sum(known[at - 1, row.ids[at]] for at in row.places))
    assert together == pytest.approx(expected, rel=3e-3)
