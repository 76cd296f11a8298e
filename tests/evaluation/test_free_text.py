"""The free-text sample, from raw rows to the evaluation of models that were trained on it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_models import train_tokenizer
from tests.lab.tiny_task import save, teach

from tuneline.data.prepare import prepare
from tuneline.data.sample import FREE_TEXT
from tuneline.gguf.export import export_gguf

SETTINGS = """
pii_ner: false
pii_profile: [pci]
pii_canaries: 20
pii_max_leak: 1
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


def test_a_model_that_learned_the_style_alone_does_not_pass(notes, tmp_path):
    taught = [row["messages"] for row in notes.rows if row["split"] == "train"]
    evidence, found = evaluate(notes, tmp_path, notes.teach(taught, 60))
    assert found["metric"] == "chrF"
    # It writes fluent sentences, which a random base does not, but not those of the note.
    assert found["gain_lower"] > 0
    assert evidence.verdict == "fail", broken(evidence)
    assert "gain_over_constant_lower" in broken(evidence)


@pytest.mark.long
def test_a_model_that_learned_the_task_passes(notes, tmp_path):
    # With the held-out notes: a model this small does not learn to copy from 300.
    taught = [row["messages"] for row in notes.rows]
    evidence, found = evaluate(notes, tmp_path, notes.teach(taught, 1200))
    assert evidence.verdict == "pass", broken(evidence)
    assert found["tuned_metric"] > 0.7
