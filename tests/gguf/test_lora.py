"""The exported adapter changes the base exactly as merging would."""

import pytest
import torch
from tests.lab.engines import llama_server
from tests.lab.families import make_family
from tests.lab.tiny_models import base_model, make_model

from tuneline.errors import UserError
from tuneline.gguf import export as gguf_export
from tuneline.gguf.export import effective_alpha, export_gguf, export_lora_gguf

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
ON = {"lora": [{"id": 0, "scale": 1.0}]}
OFF = {"lora": []}


def add_lora(model, directory, *, seed=5, scale=1.0, **settings):
    """A random adapter, both of its matrices filled, saved by PEFT; returns the PEFT model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings}
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * scale)
    adapted.save_pretrained(directory)
    return adapted


def ask(server, prompt, extra):
    messages = [{"role": "user", "content": prompt}]
    with server.client() as client:
        return client.chat(messages, max_tokens=24, logprobs=True, extra=extra)


def gap(first, second):
    """Largest difference of the log-probabilities of the first tokens of answers, nats."""
    pairs = zip(first, second, strict=True)
    return max(abs(a.logprobs[0].logprob - b.logprobs[0].logprob) for a, b in pairs)


@pytest.fixture
def exported(tmp_path):
    """Base, adapter and merged model as GGUF, of a tiny model of a family."""

    def make(family="smollm", *, export=export_lora_gguf, **settings):
        model = make_family(tmp_path / "hf", family)
        export_gguf(tmp_path / "hf", tmp_path / "base.gguf", dtype="f32")
        adapted = add_lora(model, tmp_path / "adapter", scale=0.2, **settings)
        export(tmp_path / "adapter", tmp_path / "hf", tmp_path / "adapter.gguf")
        merged = adapted.merge_and_unload()
        merged.save_pretrained(tmp_path / "hf")
        export_gguf(tmp_path / "hf", tmp_path / "merged.gguf", dtype="f32")
        return tmp_path / "base.gguf", tmp_path / "adapter.gguf", tmp_path / "merged.gguf"

    return make


PROMPTS = ["the dog", "order 42", "12 34"]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("smollm", {}),
        ("smollm", {"use_rslora": True}),
        ("qwen2", {"target_modules": TARGETS[:2]}),
        ("mistral", {}),
        ("qwen3", {}),
        ("gemma 2", {}),
        ("gemma 3", {}),
        ("phi-3", {"target_modules": FUSED}),
        ("phi-4-mini", {"target_modules": ["qkv_proj"]}),
    ],
)
def test_adapter_equals_merged(family, settings, exported):
    base, adapter, merged = exported(family, **settings)
    with llama_server(base, loras=[adapter], ctx=256) as server:
        on, off, unsaid = ([ask(server, text, how) for text in PROMPTS] for how in (ON, OFF, {}))
    with llama_server(merged, ctx=256) as server:
        together = [ask(server, prompt, {}) for prompt in PROMPTS]
    with llama_server(base, ctx=256) as server:
        plain = [ask(server, prompt, {}) for prompt in PROMPTS]
    assert [answer.text for answer in together] == [answer.text for answer in on]
    # Probabilities too: random models of Gemma's shape repeat one token, with any adapter.
    assert gap(together, on) < 0.02
    # Loaded adapters are off until a request names them.
    texts = [[answer.text for answer in answers] for answers in (off, unsaid, plain)]
    assert texts[0] == texts[1] == texts[2]
    assert gap(off, plain) == gap(unsaid, plain) == 0
    assert gap(plain, on) > 0.1


def test_the_comparison_sees_rows_in_the_wrong_order(exported, monkeypatch):
    def wrong(*paths):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_export, "interleave_heads", lambda rows, _: rows)
            export_lora_gguf(*paths)

    base, adapter, merged = exported(export=wrong)
    with llama_server(base, loras=[adapter], ctx=256) as server:
        on = [ask(server, prompt, ON).text for prompt in PROMPTS]
    with llama_server(merged, ctx=256) as server:
        assert [ask(server, prompt, {}).text for prompt in PROMPTS] != on


def test_the_scale_is_pefts():
    assert effective_alpha({"lora_alpha": 32, "r": 16}) == 32
    # llama.cpp divides by the rank: 32 · 4 / 16 = 32 / √16.
    assert effective_alpha({"lora_alpha": 32, "r": 16, "use_rslora": True}) == 128


def test_an_adapter_on_the_embedding_is_refused(tmp_path):
    model = make_model(tmp_path / "hf")
    add_lora(model, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"lm_head.* is not a LoRA of an attention"):
        export_lora_gguf(tmp_path / "adapter", tmp_path / "hf", tmp_path / "a.gguf")


@pytest.mark.long
@pytest.mark.model
def test_adapter_equals_merged_on_the_base_model(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model().path, dtype=torch.float32)
    adapted = add_lora(model, tmp_path / "adapter", scale=0.02, r=8, lora_alpha=16)
    export_lora_gguf(tmp_path / "adapter", base_model().path, tmp_path / "adapter.gguf")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for path in base_model().path.glob("*"):
        if path.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / "merged" / path.name).write_bytes(path.read_bytes())
    # Float32 on both sides, so that only the order of the additions differs.
    export_gguf(tmp_path / "merged", tmp_path / "merged.gguf", dtype="f32")
    export_gguf(base_model().path, tmp_path / "base.gguf", dtype="f32")
    prompts = ["What is the capital of France?", "My order is late.", "Count to five."]
    with llama_server(tmp_path / "base.gguf", loras=[tmp_path / "adapter.gguf"], ctx=256) as server:
        on, off = ([ask(server, text, how).text for text in prompts] for how in (ON, OFF))
    with llama_server(tmp_path / "merged.gguf", ctx=256) as server:
        assert [ask(server, text, {}).text for text in prompts] == on
    assert on != off
