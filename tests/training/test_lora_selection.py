"""The adapter is counted exactly, documented, and refused where no engine could load it."""

import pytest
from tests.training.training_lab import broken, value

from tuneline.errors import UserError
from tuneline.evidence import Verdict
from tuneline.training import lora_selection
from tuneline.training.base_weights import LoraSettings

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
    assert value(evidence, "adapted_layers") == 14
    assert "2 × r" in lora.reason
    assert f"{lora.trainable_parameters:,}" in lora.reason


def test_alpha_equal_to_r_warns(lab):
    evidence = lab(alpha=4).execute("lora_selection", lora_selection.run)
    assert evidence.verdict == Verdict.WARN
    assert broken(evidence) == {"alpha_over_r"}
    assert "1 × r where 2 × r is usual" in evidence.summary


def test_named_modules_are_taken_as_named(lab):
    run = lab(target_modules=["q_proj", "v_proj"])
    evidence = run.execute("lora_selection", lora_selection.run)
    assert value(evidence, "trainable_parameters") == 2 * 4 * (SIZES["q"] + SIZES["v"])


def test_dora_counts_its_magnitudes(lab):
    # DoRA adds a magnitude per output; only TensorRT-LLM's engine loads it.
    run = lab(dora=True, target_modules=["q_proj"], deployment={"engine": "tensorrt_llm"})
    evidence = run.execute("lora_selection", lora_selection.run)
    assert value(evidence, "trainable_parameters") == 2 * (4 * SIZES["q"] + 64)


@pytest.mark.parametrize(
    ("training", "engine", "message"),
    [
        ({"target_modules": ["qkv_proj"]}, "llama_cpp", "no linear layer 'qkv_proj'; it has q_"),
        ({"target_modules": ["q_proj", "lm_head"]}, "vllm", "no serving engine loads .* lm_head"),
        ({"target_modules": "embed_tokens"}, "vllm", "embed_tokens"),
        ({"r": 128}, "tensorrt_llm", "r is 128, tensorrt_llm loads adapters up to rank 64"),
        ({"dora": True}, "llama_cpp", "llama_cpp can't load a DoRA adapter"),
        ({"dora": True}, "vllm", "vllm can't load a DoRA adapter"),
    ],
)
def test_what_the_engine_can_not_load_is_refused(lab, training, engine, message):
    run = lab(deployment={"engine": engine}, **training)
    with pytest.raises(UserError, match=message):
        run.execute("lora_selection", lora_selection.run)


def test_ranks_within_the_limit_are_not_refused(lab):
    run = lab(r=64, deployment={"engine": "tensorrt_llm"})
    assert run.execute("lora_selection", lora_selection.run).verdict == Verdict.PASS
