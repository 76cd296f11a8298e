"""Free text, from raw rows to models that were trained on them, and the likelihood of texts."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.lab.runs import Lab, broken, exchange, values
from tests.lab.tiny_models import train_tokenizer
from tests.lab.tiny_task import save, teach

from tuneline.data.prepare import prepare
from tuneline.data.rendering.renderer import RenderedExample
from tuneline.data.sample import FREE_TEXT
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.reference_likelihood import preference, with_texts
from tuneline.evidence import conclude
from tuneline.gguf.export import export_gguf
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp
from tuneline.statistics import TAIL

SETTINGS = """
pii_ner: false
pii_profile: [pci]
pii_canaries: 20
pii_max_left: null
max_tokens: 512
"""
SHORT = {"max_new_tokens": 72}


class Notes:
    """The sample, prepared by the data phase, and a random base that can be taught."""

    def __init__(self, root: Path) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        self.root = root
        lines = FREE_TEXT.read_text().splitlines()
        texts = [t["content"] for line in lines for t in json.loads(line)["messages"]]
        self.tokenizer = train_tokenizer("smollm", texts, 1000)
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.base = save(self.model, self.tokenizer, root / "base")
        (root / "data.yaml").write_text(SETTINGS)
        done = prepare("sample://free_text.jsonl", str(self.base), root / "out", root / "data.yaml")
        assert done == 0
        self.rows = pq.read_table(root / "out" / "dataset.parquet").to_pylist()

    def teach(self, conversations: list[list[dict[str, str]]], steps: int) -> Path:
        """Teach the base, and export it as GGUF."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        model: Any = type(self.model).from_pretrained(self.base, dtype=torch.float32)
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
        teach(model, self.tokenizer, texts, steps)
        folder = save(model.half(), self.tokenizer, self.root / f"taught-{steps}")
        torch.set_num_threads(threads)
        return export_gguf(folder, self.root / f"taught-{steps}.gguf").path


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TUNELINE_THREADS", "1")
        yield Notes(tmp_path_factory.mktemp("notes"))


def evaluate(notes, tmp_path, model):
    lab = Lab(tmp_path, {"base_model": str(notes.base), "evaluation": SHORT})
    lab.leave_dataset(notes.rows)
    lab.leave_shipped(model)
    evidence = lab.execute("holdout_performance")
    return evidence, values(evidence)


def test_the_data_phase_keeps_the_notes(notes):
    splits = [row["split"] for row in notes.rows]
    assert len(splits) >= 390
    assert 0.1 <= splits.count("holdout") / len(splits) <= 0.2
    assert {row["label"] for row in notes.rows} == {None}


@pytest.mark.long
def test_a_model_that_learned_the_task_passes(notes, tmp_path):
    # With the held-out notes: a model this small does not learn to copy from 300.
    taught = [row["messages"] for row in notes.rows]
    evidence, found = evaluate(notes, tmp_path, notes.teach(taught, 1200))
    assert evidence.verdict == "pass", broken(evidence)
    assert found["tuned_metric"] > 0.7


def test_only_the_last_answer_counts():
    def last(mask):
        ids = list(range(len(mask)))
        return RenderedExample("", ids, mask, ids).last_answer()

    mask = [False, True, True, False, False, True, True, False]
    assert last(mask) == [False] * 5 + [True, True, False]
    assert last([False, True]) == [False, True]
    assert not any(last([False, False]))


def test_texts_of_another_row_replace_the_fields_alone():
    first, second = (
        Row("r", exchange("Where?", intent, reply), "rows.jsonl", 1)
        for intent, reply in (("login", "We reset it."), ("billing", "We pay it back."))
    )
    assert json.loads(with_texts(first, second, ["reply"]).answer) == {
        "intent": "login",
        "reply": "We pay it back.",
    }
    assert with_texts(first, second, [""]).messages[-1]["content"] == second.answer


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([2.0, 3.0, 1.0, 2.5], "pass"),
        ([9.0, -8.0, 7.0, -6.0], "inconclusive"),
        ([-2.0, 1.0, -1.0, 0.5], "fail"),
        ([math.nan, 1.0], "fail"),
    ],
)
def test_the_gain_over_another_rows_text_decides(gains, verdict):
    assert conclude(preference(gains, TAIL).measurements) == verdict


@pytest.fixture(scope="module")
def taught(notes):
    return notes.teach([row["messages"] for row in notes.rows if row["split"] == "train"], 60)


def by_transformers(notes, messages):
    """The log-probability of the last answer by transformers alone."""
    import torch

    model = type(notes.model).from_pretrained(notes.root / "taught-60", dtype=torch.float32)
    apply = notes.tokenizer.apply_chat_template
    whole = notes.tokenizer(apply(messages, tokenize=False))["input_ids"]
    asked = notes.tokenizer(apply(messages[:-1], tokenize=False, add_generation_prompt=True))[
        "input_ids"
    ]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    end = max(at for at, token in enumerate(whole) if token == notes.tokenizer.eos_token_id)
    places = range(len(asked), end + 1)
    return sum(float(logits[at - 1, whole[at]]) for at in places)


def test_the_engine_that_ships_tells_what_transformers_computes(notes, taught, tmp_path):
    """A model that learned the style alone holds the answers of other rows as likely."""
    evidence, found = evaluate(notes, tmp_path, taught)
    path = tmp_path / "store/runs/test/evaluation/holdout_performance/answers.parquet"
    table = {row["row_id"]: row for row in pq.read_table(path).to_pylist()}
    scored = {row_id: row for row_id, row in table.items() if row["expected_logprob"] is not None}
    assert found["expected_text_rows"] == len(scored) > 50
    messages = {row["row_id"]: row["messages"] for row in notes.rows}
    for row_id, row in list(scored.items())[:3]:
        assert row["expected_logprob"] == pytest.approx(
            by_transformers(notes, messages[row_id]), rel=0.01
        )
    gains = [row["expected_logprob"] - row["swapped_logprob"] for row in scored.values()]
    assert found["expected_text_preference"] == pytest.approx(fmean(gains), abs=1e-3)
    assert (found["metric"], evidence.verdict) == ("chrF", "fail")
    # Its sentences are fluent, which those of a random base are not, but not those of the note.
    assert found["gain_lower"] > 0
    assert broken(evidence) >= {"gain_over_constant_lower", "expected_text_preference_lower"}


def test_an_engine_that_tells_none_is_named(notes, taught, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaCpp, "losses", lambda *_: None)
    evidence, found = evaluate(notes, tmp_path, taught)
    said = "llama_cpp does not tell the probabilities of given tokens"
    assert found["expected_text_preference"] == f"not measured: {said}"
    assert said in evidence.summary
    assert "expected_text_preference_lower" not in broken(evidence)
