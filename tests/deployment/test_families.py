"""A tiny model of each family is trained, merged, exported, quantised and served."""

import pytest
import torch
from tests.lab.families import FAMILIES, distance, make_family
from tests.lab.runs import value, values
from tests.lab.training_runs import TrainingLab, make_rows, teach

from tuneline.models import load_tokenizer
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary

# In the default suite; the others are left to the long tests.
USUAL = ("gemma 3",)
CASES = [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
SETTINGS = {
    "training": {"max_steps": 20},
    "evaluation": {"max_new_tokens": 48},
    "deployment": {"quality_rows": 4},
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_way(name, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")
    teach(make_family(tmp_path / "base", name, intermediate_size=128), tmp_path / "base", steps=18)
    lab = TrainingLab(tmp_path, tmp_path / "base", SETTINGS)
    lab.train()
    assert lab.validation_losses[-1] < lab.validation_losses[0]

    lab.execute("export_candidate")
    merged = lab.artifact("export_candidate", "merged")
    tokenizer = load_tokenizer(merged)
    text = tokenizer.apply_chat_template(make_rows()[0][0].messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    candidate = lab.artifact("export_candidate", "candidate.gguf")
    found = distance(LlamaLibrary(), candidate, model, ids)
    # Weights in float16, products too; 1e-6 nats are measured.
    assert found.kl < 1e-4
    assert found.largest < 0.1

    # The engine's answers, with the adapter merged and apart, and those of transformers.
    merging = lab.execute("adapter_merging")
    assert merging.verdict == "pass", merging.summary
    assert values(merging)["engine_same_answers"] >= 0.75

    chosen = lab.execute("production_quantization")
    assert chosen.verdict == "pass", chosen.summary
    variants = lab.document("production_quantization", "variants.json")
    assert {"f16", "q8_0"} <= {entry["name"] for entry in variants}
    built = lab.execute("build_engine")
    assert value(built, "built") is True
