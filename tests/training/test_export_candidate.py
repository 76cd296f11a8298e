"""The merged model answers as base and adapter do, and every file holds the same model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.lab.runs import value
from tests.lab.training_runs import TrainingLab, make_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import gguf
from tuneline.errors import TunelineError
from tuneline.training import export_candidate
from tuneline.training.export_candidate import merge, to_half
from tuneline.training.loop.model import load_adapter, load_unquantised


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    run = TrainingLab(tmp_path_factory.mktemp("exported"), trained.base, {})
    files = {}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        files[f"adapter/{name}"] = trained.artifact("train", f"adapter/{name}")
    run.leave("train", files)
    return run, run.execute("export_candidate", export_candidate.run)


def logits(model, tokenizer):
    rows, _ = make_rows()
    text = tokenizer.apply_chat_template(rows[0].messages, tokenize=False)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        return model.eval()(ids).logits.float()


def test_the_merged_model_is_base_and_adapter(exported, trained):
    run, record = exported
    folder = run.artifact("export_candidate", "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapter = trained.artifact("train", "adapter")
    tuned = load_adapter(load_unquantised(trained.base), adapter)
    expected = logits(tuned, tokenizer)
    base = logits(load_unquantised(trained.base), tokenizer)
    assert torch.allclose(logits(merged, tokenizer), expected, atol=0.02)
    assert float((base - expected).abs().max()) > 0.5
    assert value(record, "rounding_to_f16") < 1e-3
    # The directory stands alone.
    config = run.document("export_candidate", "merged/config.json")
    assert config["dtype"] == "float16"
    assert str(trained.base) not in json.dumps(config)
    template = run.artifact("export_candidate", "merged/chat_template.jinja").read_text()
    assert "<|im_start|>" in template


def test_the_gguf_holds_the_same_values(exported):
    run, record = exported
    assert value(record, "gguf_rounded_values") == 0
    reader = gguf.GGUFReader(run.artifact("export_candidate", "candidate.gguf"))
    tensors = {t.name: t for t in reader.tensors}
    weights = load_file(run.artifact("export_candidate", "merged/model.safetensors"))
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(torch.from_numpy(tensors["blk.0.ffn_down.weight"].data.copy()), down)
    adapter = gguf.GGUFReader(run.artifact("export_candidate", "adapter.gguf"))
    assert "blk.0.ffn_down.weight.lora_a" in {t.name for t in adapter.tensors}


def test_weights_that_f16_can_not_hold_are_refused(trained):
    model = merge(trained.base, trained.artifact("train", "adapter"))
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1e6
    with pytest.raises(TunelineError, match="beyond f16's range"):
        to_half(model)
