"""Configurations are read as transformers reads them, and refused where llama.cpp differs."""

import json

import pytest
import transformers
from tests.lab.families import FAMILIES as TINY
from tests.lab.families import make_family

from tuneline.errors import UserError
from tuneline.gguf.architectures import FAMILIES, read_settings

CLASSES = {"Gemma3ForCausalLM": "Gemma3TextConfig"}


def config_class(architecture):
    name = CLASSES.get(architecture, architecture.replace("ForCausalLM", "Config"))
    return getattr(transformers, name)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_defaults_are_those_of_transformers(architecture):
    family, defaults = FAMILIES[architecture], config_class(architecture)()
    for name, value in family.defaults.items():
        # Qwen's classes drop a window that is not used.
        if name == "sliding_window" and family.defaults.get("use_sliding_window") is False:
            continue
        assert getattr(defaults, name) == value, name
    stated = defaults.to_dict()
    # What is left out there is derived from other settings, or false.
    derived = {
        "head_dim": defaults.hidden_size // defaults.num_attention_heads,
        "num_key_value_heads": defaults.num_attention_heads,
        "tie_word_embeddings": False,
    }
    for name, value in derived.items():
        assert stated.get(name) in (family.defaults.get(name, value), None), name
    activation = stated.get("hidden_activation") or stated.get("hidden_act")
    assert activation == family.activation


@pytest.mark.parametrize("name", TINY)
def test_positions_and_heads_are_those_of_transformers(name, tmp_path):
    model = make_family(tmp_path, name)
    settings = read_settings(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    attention = model.model.layers[0].self_attn
    assert settings.head_dim == attention.head_dim
    rotary = model.model.rotary_emb
    scaling = getattr(rotary, "attention_scaling", 1.0)
    assert settings.positions.attention_factor == pytest.approx(scaling)
    if hasattr(rotary, "inv_freq"):
        assert settings.positions.dims == 2 * len(rotary.inv_freq)


# As their authors published them, in the form of their time.
PUBLISHED = json.loads("""{
"Gemma2ForCausalLM": {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh",
  "head_dim": 256, "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4,
  "num_hidden_layers": 26, "query_pre_attn_scalar": 256, "sliding_window": 4096,
  "max_position_embeddings": 8192, "rope_theta": 10000.0, "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0},
"Gemma3ForCausalLM": {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256,
  "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 26,
  "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
  "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": null,
  "max_position_embeddings": 32768, "attn_logit_softcapping": null},
"Phi3ForCausalLM": {"hidden_act": "silu", "hidden_size": 3072, "num_attention_heads": 32,
  "num_key_value_heads": 32, "num_hidden_layers": 32, "sliding_window": 2047,
  "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
  "rope_theta": 10000.0, "rope_scaling": null},
"MistralForCausalLM": {"hidden_act": "silu", "hidden_size": 4096, "num_attention_heads": 32,
  "num_key_value_heads": 8, "num_hidden_layers": 32, "sliding_window": 4096,
  "max_position_embeddings": 32768, "rope_theta": 10000.0},
"Qwen3ForCausalLM": {"hidden_act": "silu", "hidden_size": 1024, "head_dim": 128,
  "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28,
  "sliding_window": null, "use_sliding_window": false, "attention_bias": false,
  "max_position_embeddings": 40960, "rope_theta": 1000000, "rope_scaling": null}
}""")


def read(tmp_path, architecture, **changes):
    config = {"architectures": [architecture], **PUBLISHED[architecture], **changes}
    return read_settings({k: v for k, v in config.items() if v != LEFT_OUT}, tmp_path)


def test_gemma_3_has_positions_of_its_own_on_layers_with_a_window(tmp_path):
    positions = read(tmp_path, "Gemma3ForCausalLM").positions
    assert (positions.theta, positions.local_theta) == (1e6, 1e4)
    scaled = read(
        tmp_path, "Gemma3ForCausalLM", rope_scaling={"rope_type": "linear", "factor": 8.0}
    ).positions
    assert (scaled.kind, scaled.factor, scaled.theta) == ("linear", 8.0, 1e6)


@pytest.mark.parametrize(
    ("architecture", "changes", "context", "limit"),
    [
        ("MistralForCausalLM", {}, 4096, 4096),
        ("MistralForCausalLM", {"sliding_window": None}, 32768, None),
        ("Qwen3ForCausalLM", {}, 40960, None),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": 512}, 512, 512),
        ("Phi3ForCausalLM", {}, 2047, 2047),
        # llama.cpp has the windows of Gemma.
        ("Gemma2ForCausalLM", {}, 8192, None),
    ],
)
def test_the_context_in_which_llama_cpp_computes_the_same(
    architecture, changes, context, limit, tmp_path
):
    settings = read(tmp_path, architecture, **changes)
    assert (settings.trained_context, settings.faithful_context) == (context, limit)


def test_longrope_holds_up_to_the_context_before_it_was_stretched(tmp_path):
    factors = {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "su"}
    changes = {"max_position_embeddings": 131072, "sliding_window": 262144}
    settings = read(tmp_path, "Phi3ForCausalLM", rope_scaling=factors, **changes)
    assert settings.positions.kind == "longrope"
    assert settings.positions.attention_factor == pytest.approx(1.1902380714238083)
    assert (settings.trained_context, settings.faithful_context) == (131072, 4096)
    # llama.cpp rounds a context up to 256 tokens.
    changes["original_max_position_embeddings"] = 1000
    settings = read(tmp_path, "Phi3ForCausalLM", rope_scaling=factors, **changes)
    assert settings.faithful_context == 768


LEFT_OUT = "left out"


@pytest.mark.parametrize(
    ("architecture", "changes", "sentence"),
    [
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 144}, "no query_pre_attn_scalar 144"),
        ("Gemma2ForCausalLM", {"num_hidden_layers": 46}, "no query_pre_attn_scalar 256"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "needs attn_logit_softcapping"),
        ("Gemma2ForCausalLM", {"tie_word_embeddings": False}, "no tie_word_embeddings False"),
        ("Gemma2ForCausalLM", {"sliding_window": None}, "needs sliding_window"),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 4}, "on every 6th layer"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "no use_bidirectional"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "no attn_logit_softcapping 50"),
        ("Gemma3ForCausalLM", {"hidden_activation": "relu"}, "no relu"),
        ("Qwen3ForCausalLM", {"attention_bias": True}, "no attention_bias True"),
        ("Qwen3ForCausalLM", {"partial_rotary_factor": 0.5}, "on 0.5 of each head"),
        ("Phi3ForCausalLM", {"head_dim": 128}, "no heads of size 128"),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1]}},
            "has 1 factors where 48 are needed",
        ),
        ("Qwen3ForCausalLM", {"rope_scaling": {"rope_type": "yarn"}}, "'yarn' can't be exported"),
        ("Qwen3ForCausalLM", {"hidden_size": LEFT_OUT}, r"config\.json lacks 'hidden_size'"),
        ("Qwen3ForCausalLM", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM can't be"),
        (
            "Qwen3ForCausalLM",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "is quantised",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    architecture, changes, sentence, tmp_path
):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, architecture, **changes)


def test_the_scale_of_the_largest_gemma_2(tmp_path):
    changes = {"num_hidden_layers": 46, "hidden_size": 4608, "num_attention_heads": 32}
    assert read(tmp_path, "Gemma2ForCausalLM", head_dim=128, query_pre_attn_scalar=144, **changes)
