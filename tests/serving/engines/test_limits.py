"""A base model that a run could not take to its end is refused when the run is made."""

import json
import shutil

import pytest
from tests.lab.families import FAMILIES, make_family
from tests.lab.tiny_models import make_model

from tuneline.config import build_config
from tuneline.errors import UserError
from tuneline.launch import create_run
from tuneline.models.resolver import sizes_of
from tuneline.serving.engines.engine import read_facts
from tuneline.serving.engines.limits import refuse_engine, refuse_unfit


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fit") / "model"
    make_model(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


@pytest.fixture
def base(fit, tmp_path):
    return shutil.copytree(fit, tmp_path / "model")


@pytest.fixture
def refusal(tmp_path):
    """The reason for which a run of a base model is refused; it leaves nothing behind."""

    def create(base, overrides=""):
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "a", "completion": "b"}\n')
        fields = {"data": str(rows), "base_model": str(base), "overrides": overrides}
        with pytest.raises(UserError) as refused:
            create_run(fields, (tmp_path / "store").as_uri(), "run-1")
        assert not (tmp_path / "store").exists()
        return str(refused.value)

    return create


def test_a_model_that_fits_is_taken(base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    store = (tmp_path / "store").as_uri()
    assert create_run({"data": str(rows), "base_model": str(base)}, store, "run-1")


def test_an_architecture_that_the_exporter_does_not_know(tmp_path, refusal):
    other = tmp_path / "gemma"
    make_model(other, "Gemma", head_dim=16)
    said = refusal(other)
    assert "GemmaForCausalLM can't be exported to GGUF" in said
    assert "Choose a base model of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, " in said
    for architecture in ("Qwen3", "Gemma2", "Gemma3", "Phi3"):
        assert f"{architecture}ForCausalLM" in said


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_taken(name, tmp_path):
    make_family(tmp_path / "model", name)
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = build_config({"data": {"source": "x.jsonl"}, "base_model": str(tmp_path / "model")})
    refuse_unfit(tmp_path / "model", sizes_of(tmp_path / "model"), config)


def test_a_context_beyond_the_window_that_llama_cpp_does_not_have(tmp_path, refusal):
    other = tmp_path / "model"
    make_family(other, "mistral", sliding_window=512)
    (other / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert "deployment.context_tokens 1024 is more than 512" in refusal(other)


def test_longrope_beyond_the_context_before_it_was_stretched(tmp_path, refusal):
    other = tmp_path / "model"
    make_family(other, "phi-4-mini")
    (other / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    said = refusal(other, "deployment: {context_tokens: 1500}")
    assert "deployment.context_tokens 1500 is more than 1024" in said


def test_a_tokenizer_that_llama_cpp_has_no_name_for(tmp_path, refusal):
    other = tmp_path / "other"
    make_model(other, tokenizer="unknown")
    assert "no llama.cpp pre-tokenizer is known" in refusal(other)


def test_a_tokenizer_without_a_chat_template(base, refusal):
    (base / "chat_template.jinja").unlink()
    said = refusal(base)
    assert "lacks a chat template" in said
    assert "the instruct or chat variant of a model has one" in said


def test_an_engine_whose_build_needs_a_gpu_that_the_run_has_not(base, refusal):
    said = refusal(base, "deployment: {engine: tensorrt_llm}")
    assert "set pods.gpus to 1 or more, or choose llama_cpp" in said


def test_an_engine_that_does_not_know_the_model(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["OtherForCausalLM"]}))
    run = build_config(
        {"data": {"source": "x.jsonl"}, "deployment": {"engine": "vllm"}, "base_model": str(base)}
    )
    with pytest.raises(UserError, match=r"vllm can't serve it: .*; choose llama_cpp, or another"):
        refuse_engine(read_facts(base), run, "base model")


def test_a_licence_that_does_not_allow_the_use(base, refusal):
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    said = refusal(base)
    assert "CC-BY-NC-4.0: refuses commercial use" in said
    assert "change governance.intended_use" in said


@pytest.mark.parametrize("card", ["---\nlicense: made-up-1.0\n---\n", ""])
def test_a_licence_that_waits_for_a_person_is_left_to_the_audit(base, card):
    """The audit asks; a run that was refused here could not be asked about."""
    (base / "README.md").write_text(card)
    config = build_config({"data": {"source": "x.jsonl"}, "base_model": str(base)})
    refuse_unfit(base, sizes_of(base), config)


def test_a_waived_licence_is_left_to_the_people_who_waive(base):
    (base / "README.md").unlink()
    waiver = {"item": "license_audit", "reason": "cleared by the legal team"}
    config = build_config(
        {"data": {"source": "x.jsonl"}, "base_model": str(base), "waivers": [waiver]}
    )
    refuse_unfit(base, sizes_of(base), config)


def test_a_model_that_is_too_large_for_the_pod_that_merges(base, refusal):
    said = refusal(base, "pods: {memory: 100k}")
    assert "more than pods.memory (100k)" in said
    assert "raise it to 1Gi or more, or choose a smaller base model" in said
