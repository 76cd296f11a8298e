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
from tuneline.serving.engines.limits import refuse_unfit

APACHE = "---\nlicense: apache-2.0\n---\n"


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fit") / "model"
    make_model(directory)
    (directory / "README.md").write_text(APACHE)
    return directory


@pytest.fixture
def base(fit, tmp_path):
    return shutil.copytree(fit, tmp_path / "model")


def launch(tmp_path, base, overrides=""):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    fields = {"data": str(rows), "base_model": str(base), "overrides": overrides}
    return create_run(fields, (tmp_path / "store").as_uri(), "run-1")


def refuse(base, **settings):
    config = build_config({"data": {"source": "x.jsonl"}, "base_model": str(base), **settings})
    refuse_unfit(base, sizes_of(base), config)


def other(architecture, **config):
    """Put another model in the place of the one that fits."""

    def plant(base):
        shutil.rmtree(base)
        make = make_family if architecture in FAMILIES else make_model
        make(base, architecture, **config)
        (base / "README.md").write_text(APACHE)

    return plant


KNOWN = "Llama Mistral Qwen2 Qwen3 Gemma2 Gemma3 Phi3".split()


@pytest.mark.parametrize(
    ("plant", "overrides", "said"),
    [
        (
            other("Gemma", head_dim=16),
            "",
            "GemmaForCausalLM can't be exported to GGUF.*Choose a base model of "
            + ", ".join(f"{name}ForCausalLM" for name in KNOWN),
        ),
        (other("mistral", sliding_window=512), "", "context_tokens 1024 is more than 512"),
        # Beyond the context before it was stretched.
        (
            other("phi-4-mini"),
            "deployment: {context_tokens: 1500}",
            "context_tokens 1500 is more than 1024",
        ),
        (other("Llama", tokenizer="unknown"), "", r"no llama\.cpp pre-tokenizer is known"),
        (
            lambda base: (base / "chat_template.jinja").unlink(),
            "",
            "lacks a chat template.*the instruct or chat variant of a model has one",
        ),
        (None, "deployment: {engine: tensorrt_llm}", "set pods.gpus to 1 or more, or choose"),
        (
            lambda base: (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n"),
            "",
            "CC-BY-NC-4.0: refuses commercial use.*change governance.intended_use",
        ),
        (
            None,
            "pods: {memory: 100k}",
            r"more than its pod has \(100k\).*merge: {memory: 1Gi}}} or more, or choose a",
        ),
    ],
)
def test_a_base_that_the_run_can_not_take_to_its_end(plant, overrides, said, base, tmp_path):
    if plant:
        plant(base)
    with pytest.raises(UserError, match=said):
        launch(tmp_path, base, overrides)
    assert not (tmp_path / "store").exists()


def test_a_model_that_fits_is_taken(base, tmp_path):
    assert launch(tmp_path, base)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_taken(name, base):
    other(name)(base)
    refuse(base)


def test_an_engine_that_does_not_know_the_model(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["OtherForCausalLM"]}))
    with pytest.raises(UserError, match=r"vllm can't serve it: .*; choose llama_cpp, or another"):
        refuse(base, deployment={"engine": "vllm"}, training={"rehearsal_rows": 0})


@pytest.mark.parametrize("card", ["---\nlicense: made-up-1.0\n---\n", ""])
def test_a_licence_that_waits_for_a_person_is_left_to_the_audit(base, card):
    """The audit asks; a run that was refused here could not be asked about."""
    (base / "README.md").write_text(card)
    refuse(base)


def test_a_waived_licence_is_left_to_the_people_who_waive(base):
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    waived = {"item": "license_audit", "measurement": "base_model_allowed", "up_to": False}
    refuse(base, waivers=[{**waived, "reason": "cleared by the legal team"}])
