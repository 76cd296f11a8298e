"""Settings of earlier versions: typed ones are refused with a sentence, stored ones read."""

import hashlib
import json
from functools import reduce

import pytest
from tests.lab.runs import Lab

from tuneline.config import PipelineConfig, build_config
from tuneline.config.policy import read_policy
from tuneline.config.retired import RENAMED, RETIRED
from tuneline.errors import UserError
from tuneline.run import Run

DATA = {"data": {"source": "rows.jsonl"}}


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
    for path, sentence in (RETIRED | RENAMED).items():
        assert not exists(path), path
        with pytest.raises(UserError) as refusal:
            build_config(DATA, nested(path, 1))
        assert f"{path}: " in str(refusal.value)
        assert sentence in str(refusal.value)
    assert all(map(exists, RENAMED.values()))


@pytest.fixture
def earlier(monkeypatch):
    """Settings that an earlier version had."""
    monkeypatch.setitem(RETIRED, "evaluation.echoes", "echoes are not measured any more")
    monkeypatch.setitem(RENAMED, "training.rank", "training.r")


def test_a_typed_one_is_refused(earlier, policy):
    with pytest.raises(UserError) as refusal:
        build_config(DATA, {"evaluation": {"echoes": {"share": 1}}, "training": {"rank": 4}})
    assert "evaluation.echoes: echoes are not measured any more; remove" in str(refusal.value)
    assert "training.rank: is called training.r now" in str(refusal.value)
    policy(limits={"evaluation": {"echoes": {"share": 0.1}}})
    with pytest.raises(UserError, match=r"evaluation\.echoes\.share: echoes are not measured"):
        read_policy()


def test_a_run_that_stored_one_stays_readable(earlier, tmp_path):
    run = Lab(tmp_path, {}).run
    store = run.store
    config = json.loads(store.get_bytes(run.key("config.json")))
    config["evaluation"]["echoes"] = {"share": 0.5}
    config["training"]["rank"] = config["training"].pop("r") + 1
    waiver = {"item": "base_regression", "reason": "agreed with the owner of the service"}
    config["waivers"] = [{**waiver, "limit": "evaluation.echoes.share"}, waiver]
    store.put_bytes(run.key("config.json"), json.dumps(config).encode())
    text = run.policy.text.replace("evaluation:", "evaluation:\n    echoes: {share: 1}", 1)
    recorded = {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    meta = {**run.meta, "policy": {**run.meta["policy"], **recorded}}
    store.put_bytes(run.key("run.json"), json.dumps(meta).encode())

    opened = Run.open(run.uri)
    assert opened.config.training.r == config["training"]["rank"]
    assert [waiver.limit for waiver in opened.config.waivers] == [None]
    assert "echoes" in opened.policy.text
    assert opened.policy.looser(opened.config) == run.policy.looser(opened.config)
