"""The adapter is counted exactly, documented, and refused where no engine could load it."""

import pytest
import torch
import transformers
from benchmarks.faults.guests.families import FAMILIES, write_base
from tests.lab.runs import broken, value
from tests.lab.tiny_models import CONFIGS

from tuneline.artifacts.training import LoraSettings
from tuneline.config import build_config
from tuneline.errors import UserError
from tuneline.evidence import Verdict
from tuneline.serving.engines.limits import rank_limit, refuse_unservable
from tuneline.training import lora_selection
from tuneline.training.loop.model import attach_lora, linear_modules
from tuneline.training.lora_selection import resolve_targets

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Per layer of the tiny model: (in + out) of each linear layer.
SIZES = {"q": 128, "k": 96, "v": 96, "o": 128, "gate": 192, "up": 192, "down": 192}


def test_the_adapter_is_counted_and_documented(lab):
    run = lab()
    evidence = run.execute("lora_selection", lora_selection.run)
    assert evidence.verdict == Verdict.PASS
    lora = LoraSettings.model_validate(run.document("lora_selection", "lora.json"))
    assert (lora.r, lora.alpha, lora.target_modules) == (4, 8, KINDS)
    assert lora.trainable_parameters == 2 * 4 * sum(SIZES.values())
    assert "on 14 layers" in lora.reason
    assert "2 × r" in lora.reason
    assert f"{lora.trainable_parameters:,}" in lora.reason


def test_alpha_equal_to_r_warns_and_any_rank_fits_llama_cpp(lab):
    evidence = lab(alpha=4).execute("lora_selection", lora_selection.run)
    assert (evidence.verdict, broken(evidence)) == (Verdict.WARN, {"alpha_over_r"})
    assert "1 × r where 2 × r is usual" in evidence.summary
    run = lab("large", r=512, rslora=True)
    evidence = run.execute("lora_selection", lora_selection.run)
    assert evidence.verdict == Verdict.PASS
    assert value(evidence, "rank_limit_of_engine") is None
    assert (
        value(evidence, "rslora") is run.document("lora_selection", "lora.json")["rslora"] is True
    )
    assert "scaled by alpha/√r = 45.3)" in evidence.summary
    # What is usual for alpha/r says nothing of this scale.
    evidence = lab("other", alpha=4, rslora=True).execute("lora_selection", lora_selection.run)
    assert (evidence.verdict, value(evidence, "alpha_over_r")) == (Verdict.PASS, 1)
    assert "usual" not in evidence.summary


def test_an_adapter_that_does_not_train_fails(lab, monkeypatch):
    def frozen(*given):
        return attach_lora(*given).requires_grad_(False)

    monkeypatch.setattr("tuneline.training.loop.model.attach_lora", frozen)
    evidence = lab().execute("lora_selection", lora_selection.run)
    assert (evidence.verdict, broken(evidence)) == (Verdict.FAIL, {"trainable_parameters"})


@pytest.mark.parametrize(
    ("engine", "training", "parameters"),
    [
        ("llama_cpp", {"target_modules": ["q_proj", "v_proj"]}, 4 * (SIZES["q"] + SIZES["v"])),
        # DoRA adds a magnitude per output.
        ("llama_cpp", {"target_modules": ["q_proj"], "dora": True}, 4 * SIZES["q"] + 64),
    ],
)
def test_named_modules_and_magnitudes_are_counted(lab, engine, training, parameters):
    run = lab(deployment={"engine": engine}, **training)
    evidence = run.execute("lora_selection", lora_selection.run)
    assert value(evidence, "trainable_parameters") == 2 * parameters


@pytest.mark.parametrize(
    ("training", "engine", "message"),
    [
        ({"target_modules": ["qkv_proj"]}, "llama_cpp", "no linear layer 'qkv_proj'; it has q_"),
        ({"target_modules": ["q_proj", "lm_head"]}, "vllm", "no serving engine loads .* lm_head"),
        ({"target_modules": "embed_tokens"}, "vllm", "embed_tokens"),
        ({"r": 128}, "tensorrt_llm", "training.r: rank 128 is above 64, the largest that tensor"),
        ({"sweep_r": [8, 65]}, "tensorrt_llm", "training.sweep_r: rank 65 is above 64"),
        ({"dora": True}, "llama_cpp", "llama_cpp can't load a DoRA adapter"),
        ({"dora": True}, "vllm", "vllm can't load a DoRA adapter"),
    ],
)
def test_what_the_engine_can_not_load_is_refused(lab, training, engine, message):
    # A DoRA adapter is refused where it shall stay apart; merged it ships like any other.
    run = lab(deployment={"engine": engine, "multi_tenant": "dora" in training}, **training)
    with pytest.raises(UserError, match=message):
        run.execute("lora_selection", lora_selection.run)


@pytest.mark.parametrize(
    ("r", "deployment", "limit"),
    [
        (64, {"engine": "tensorrt_llm"}, 64),
        # A server that was started for more, and one for less than its engine could take.
        (128, {"engine": "tensorrt_llm", "max_lora_rank": 128}, 128),
        (16, {"engine": "vllm", "max_lora_rank": 16}, 16),
        (512, {"engine": "vllm", "max_lora_rank": 1024}, 512),
    ],
)
def test_ranks_within_the_limit_are_not_refused(r, deployment, limit):
    settings = {"data": {"source": "x.jsonl"}, "training": {"r": r}, "deployment": deployment}
    config = build_config(settings)
    refuse_unservable(config.training, config.deployment)
    assert rank_limit(config.deployment) == limit
    if r < 512:
        above = config.training.model_copy(update={"r": r + 1})
        with pytest.raises(UserError, match=f"above {limit}"):
            refuse_unservable(above, config.deployment)


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("Llama", KINDS),
        ("Mistral", KINDS),
        ("Qwen2", KINDS),
        ("Qwen3", KINDS),
        ("Gemma2", KINDS),
        ("Gemma3", KINDS),
        ("Phi3", ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]),
        ("GPTNeoX", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("OPT", ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]),
        # The experts are stacked weights, no layers: the adapter sits on attention.
        ("Mixtral", KINDS[:4]),
    ],
)
def test_all_linear_means_the_layers_of_the_architecture(architecture, kinds):
    name = CONFIGS.get(architecture, architecture)
    config = getattr(transformers, f"{name}Config")(num_hidden_layers=2)
    with torch.device("meta"):
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    assert resolve_targets("all-linear", linear_modules(model)) == kinds


def test_experts_that_carry_no_adapter_are_named(lab, tmp_path):
    base = write_base(FAMILIES["gptoss"], tmp_path / "mixture")
    evidence = lab(base=base, r=4).execute("lora_selection", lora_selection.run)
    assert "of the experts are not linear layers and stay" in evidence.summary


def test_what_has_no_adapter_of_linear_layers_is_refused():
    with pytest.raises(UserError, match="has no linear layer that could carry an adapter"):
        resolve_targets("all-linear", [])
    with pytest.raises(UserError, match="modules_to_save: no serving engine loads"):
        build_config({"data": {"source": "x.jsonl"}, "training": {"modules_to_save": ["lm_head"]}})
