"""promote: a finished run is released; each reason to refuse it leaves the pointer where it was."""

import json

import pytest
from tests.governance.conftest import BROKEN, HOLDS

from tuneline import human_answers
from tuneline.artifacts.releases import read_release
from tuneline.errors import UserError
from tuneline.governance import promote
from tuneline.governance.release.manifest import verify


@pytest.fixture
def ready_lab(finished_lab):
    """Make a run that lineage has finished too."""

    def make(**overrides):
        lab = finished_lab(name="model", profile="production", **overrides)
        assert lab.execute("lineage").verdict == "pass"
        return lab

    return make


def pointer_file(lab):
    return lab.root / "store/models/model/production.json"


def log_lines(lab):
    log = lab.root / "store/models/model/test/release.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def earlier_release(lab):
    """Release a version before this one; its pointer as bytes."""
    pointer = {
        "schema": "tuneline/production/1",
        "name": "model",
        "version": "before",
        "manifest": "file:///x/models/model/before/manifest.json",
        "manifest_sha256": "0",
        "release_sha256": "0",
        "previous_version": None,
        "released_at": "2026-01-01T00:00:00.000Z",
    }
    raw = json.dumps(pointer).encode()
    lab.run.store.put_bytes("models/model/production.json", raw)
    return raw


def refused(lab):
    """Try to promote; the sentence of the refusal, after the pointer was seen unmoved."""
    before = earlier_release(lab)
    with pytest.raises(UserError) as refusal:
        lab.execute("promote")
    assert pointer_file(lab).read_bytes() == before
    assert not (lab.root / "store/models/model/test/release.jsonl").exists()
    assert str(refusal.value).startswith("model is not promoted: ")
    return str(refusal.value)


def test_a_finished_run_is_released(ready_lab):
    lab = ready_lab()
    earlier_release(lab)
    record = lab.execute("promote")
    assert record.summary == "model test is released"
    pointer = json.loads(pointer_file(lab).read_text())
    keys = "schema name version manifest manifest_sha256 release_sha256 previous_version"
    assert list(pointer) == [*keys.split(), "released_at"]
    assert (pointer["version"], pointer["previous_version"]) == ("test", "before")
    assert verify(pointer["manifest"]) == []
    (line,) = log_lines(lab)
    assert line["schema"] == "tuneline/release/1"
    assert (line["event"], line["by"]) == ("released", "alice")
    assert line["previous_sha256"] == pointer["manifest_sha256"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            lambda lab: lab.leave("holdout_performance", {}, [BROKEN]),
            "holdout_performance (fail: limit_holds is False, must be == True",
        ),
        (
            lambda lab: lab.run.store.delete_prefix(lab.run.step_key("deduplication")),
            "deduplication (not_run: ",
        ),
        (
            lambda lab: (lab.root / "store/models/model/test/model.gguf").write_bytes(b"Weights"),
            "model.gguf is corrupt",
        ),
        (
            lambda lab: lab.leave("build_engine", {"not_built.json": "{}"}, [HOLDS]),
            "the engine llama_cpp was not built: left by a test",
        ),
    ],
    ids=["critical failure", "critical item not run", "altered file", "no engine"],
)
def test_each_fault_refuses(ready_lab, fault, reason):
    lab = ready_lab()
    fault(lab)
    assert reason in refused(lab)


def test_a_failure_of_a_recommended_item_does_not_refuse(ready_lab):
    lab = ready_lab()
    lab.leave("determinism", {}, [BROKEN])
    lab.execute("promote")
    assert read_release(lab.run.store, "model").version == "test"


def test_a_run_that_asks_for_approval_is_refused_without_one(ready_lab):
    lab = ready_lab(approval=True)
    assert "nobody has approved the release" in refused(lab)


def test_only_the_last_answer_to_the_release_counts(ready_lab):
    lab = ready_lab(approval=True)
    human_answers.record_approval(lab.run, "approve_release", "Approve", "bob")
    human_answers.record_approval(lab.run, "approve_release", "Reject", "carol")
    human_answers.record_approval(lab.run, "approve_waivers", "Approve", "dave")
    assert "nobody has approved the release" in refused(lab)


def test_an_approved_release_names_who_approved_it(ready_lab):
    lab = ready_lab(approval=True)
    human_answers.record_approval(lab.run, "approve_release", "Approve", "bob")
    lab.execute("promote")
    assert log_lines(lab)[0]["approved_by"] == "bob"


def test_all_reasons_are_named_at_once(ready_lab):
    lab = ready_lab(approval=True)
    lab.leave("build_engine", {}, [HOLDS])
    lab.leave("fallback", {}, [BROKEN])
    lab.leave("adapter_merging", {}, [BROKEN])
    (lab.root / "store/models/model/test/lora.json").unlink()
    sentence = refused(lab)
    for part in ("adapter_merging (fail", "was not built", "nobody has approved", "is missing"):
        assert part in sentence
    assert "fallback" not in sentence


def test_a_retry_logs_the_release_once(ready_lab, monkeypatch):
    """The first try dies between the log and the pointer."""
    lab = ready_lab()

    def dies(store, pointer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promote, "write_release", dies)
        with pytest.raises(KeyboardInterrupt):
            lab.execute("promote")
    assert not pointer_file(lab).exists()
    for _ in range(2):
        lab.execute("promote")
    assert len(log_lines(lab)) == 1
    assert verify(json.loads(pointer_file(lab).read_text())["manifest"]) == []
