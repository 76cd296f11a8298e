"""promote: a finished run is released; each reason to refuse it leaves the pointer where it was."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import ANY

import pytest
from tests.governance.conftest import BROKEN, HOLDS, MEASURED
from tests.lab.dying_store import DyingStore, Killed
from tests.lab.releases import log_release

from tuneline.artifacts.answers import APPROVALS, Person
from tuneline.artifacts.governance import MANIFEST_REF, Manifest
from tuneline.artifacts.releases import read_release
from tuneline.cli import evaluation
from tuneline.errors import UserError
from tuneline.governance import promote
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.prune import Fate, Pruning, Retention
from tuneline.governance.release.verify import verify
from tuneline.people import approvals
from tuneline.store import CorruptObject
from tuneline.verdicts import status


@pytest.fixture
def ready_lab(finished_lab):
    """Make a run that lineage has finished too."""

    def make(**overrides):
        lab = finished_lab(name="model", **{"profile": "production", **overrides})
        assert lab.execute("lineage").verdict == "pass"
        return lab

    return make


def pointer_file(lab, name="production"):
    return lab.root / f"store/models/model/{name}.json"


def log_lines(lab):
    log = lab.root / "store/models/model/test/release.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def earlier_release(lab, version="before"):
    """Release another version; the pointer as bytes."""
    manifest = Manifest(name="model", version=version, files=[])
    digest = write_manifest(lab.run.store, f"models/model/{version}", manifest)
    log_release(lab.run.store, "model", version, digest)
    return pointer_file(lab).read_bytes()


def answer(lab, subject, decision, name, known_as=None):
    """Put a question as its task does, and answer it."""
    reason = "seen with the owner of the service"
    approvals.note_question(lab.run, subject)
    approvals.record_approval(lab.run, subject, decision, Person(name, known_as), reason)


def refused(lab):
    """Try to promote; the sentence of the refusal, after the pointer was seen unmoved."""
    before = earlier_release(lab)
    with pytest.raises(UserError) as refusal:
        lab.execute("promote")
    assert pointer_file(lab).read_bytes() == before
    assert not (lab.root / "store/models/model/test/release.jsonl").exists()
    assert str(refusal.value).startswith("model is not promoted: ")
    return str(refusal.value)


def test_a_run_that_a_prune_has_begun_to_delete_is_refused(ready_lab):
    lab = ready_lab()
    before = earlier_release(lab)
    pruning = Pruning(lab.run.store, Retention(datetime.now(UTC) + timedelta(1), 1))
    pruning.store = DyingStore(lab.run.store, 1, "after", only_writes=True)
    with pytest.raises(Killed):
        pruning.carry_out(Fate("test", "unreleased", "", "model"), "ada")
    with pytest.raises(UserError, match="has begun to delete it; start a new run"):
        lab.execute("promote")
    assert pointer_file(lab).read_bytes() == before


def test_a_finished_run_is_released(ready_lab):
    lab = ready_lab()
    earlier_release(lab)
    record = lab.execute("promote")
    assert record.summary == "model test is released to production"
    pointer = json.loads(pointer_file(lab).read_text())
    keys = "schema name version manifest manifest_sha256 release_sha256 previous_version"
    assert list(pointer) == [*keys.split(), "released_at", "history", "heads", "lines"]
    assert (pointer["version"], pointer["previous_version"]) == ("test", "before")
    assert verify(pointer["manifest"]) == []
    (line,) = log_lines(lab)
    assert line["schema"] == "tuneline/release/1"
    assert (line["event"], line["by"]) == ("released", "alice")
    assert line["previous_sha256"] == pointer["manifest_sha256"]


def edit(lab, item, **fields):
    """Leave an item that fails, then rewrite its evidence with a fitting hash."""
    lab.leave(item, {}, [BROKEN])
    store, key = lab.run.store, lab.run.step_key(item, "evidence.json")
    document = json.loads(store.get_bytes(key)) | fields
    store.put_bytes(key, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            lambda lab: lab.leave("holdout_performance", {}, [BROKEN]),
            "holdout_performance (fail: limit_holds is False, must be == True",
        ),
        (
            lambda lab: edit(lab, "holdout_performance", verdict="pass"),
            "holdout_performance (fail: limit_holds is False, must be == True",
        ),
        (
            lambda lab: lab.run.store.delete_prefix(lab.run.step_key("deduplication")),
            "deduplication (not_run: ",
        ),
        (
            lambda lab: (
                lab.root / "store" / lab.run.step_key("schema_validation", "gate.json")
            ).unlink(),
            "schema_validation (not_run: the gate: it left no gate.json",
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
)
def test_each_fault_refuses(ready_lab, fault, reason):
    lab = ready_lab()
    fault(lab)
    assert reason in refused(lab)


def rules_of(lab):
    return json.loads(pointer_file(lab, "rules").read_text())


def test_a_laptop_run_never_moves_what_is_in_production(ready_lab):
    lab = ready_lab()
    lab.execute("promote")
    before = pointer_file(lab).read_bytes(), rules_of(lab)
    small = ready_lab(run_id="small", profile="laptop")
    assert small.execute("promote").summary == "model small is released to staging"
    assert (pointer_file(lab).read_bytes(), rules_of(lab)) == before
    staged = json.loads(pointer_file(lab, "staging").read_text())
    assert (staged["schema"], staged["version"]) == ("tuneline/staging/1", "small")
    assert staged["previous_version"] is None
    assert verify(staged["manifest"]) == verify(json.loads(before[0])["manifest"]) == []
    # Whoever copies the one over the other has no release.
    pointer_file(lab).write_bytes(pointer_file(lab, "staging").read_bytes())
    with pytest.raises(CorruptObject):
        read_release(lab.run.store, "model")


def test_the_rules_of_a_model_bind_whoever_starts_a_run(ready_lab, policy):
    """The first release has the model's file; the others are started past it, from a shell."""
    first = ready_lab(approval=True)
    first.run.meta["approvers"] = ["alice", "bob"]
    answer(first, "approve_release", "Approve", "bob")
    first.execute("promote")
    rules = rules_of(first)
    assert (rules["profile"], rules["approvers"], rules["approval"]) == (
        "production", ["alice", "bob"], True,
    )  # fmt: skip
    past = ready_lab(run_id="past")
    with pytest.raises(UserError, match=r"asked for \(the rules of the model\)"):
        past.execute("promote")
    with pytest.raises(UserError, match="mallory is not an approver"):
        answer(past, "approve_release", "Approve", "mallory")
    policy(version=99)
    loose = ready_lab(run_id="loose")
    with pytest.raises(UserError, match="a change of the model's rules: policy_version 7 → 99"):
        loose.execute("promote")
    assert rules_of(first) == rules
    answer(loose, "approve_release", "Approve", "bob")
    loose.execute("promote")
    assert rules_of(first) == {**rules, "policy_version": 99, "policy_sha256": ANY}


def test_a_limit_that_is_only_said_to_hold_is_refused(ready_lab):
    lab = ready_lab()
    forged = {**BROKEN.model_dump(mode="json"), "ok": True}
    edit(lab, "holdout_performance", verdict="pass", measurements=[forged])
    with pytest.raises(UserError, match=r"valid evidence file: .*limit_holds is said to hold"):
        lab.execute("promote")


def test_evidence_that_changed_after_the_manifest_refuses(ready_lab):
    lab = ready_lab()
    lab.leave("determinism", {}, [BROKEN])
    reason = refused(lab)
    assert "lineage read measurements of determinism as" in reason
    assert "start a new run for a new version" in reason


def because(lab):
    return status(lab.run, "lineage").because


def test_a_late_result_says_what_became_of_the_version(ready_lab):
    lab = ready_lab()
    lab.leave("human_review", {}, [BROKEN, MEASURED])
    assert because(lab).endswith("so start a new run for a new version")
    lab.leave("human_review", {}, [HOLDS, MEASURED])
    lab.execute("promote")
    lab.leave("human_review", {}, [BROKEN, MEASURED])
    assert "model test was released with what its manifest states, and stays so" in because(lab)
    assert verify(json.loads(pointer_file(lab).read_text())["manifest"]) == []
    (lab.root / "store/models/model/test/manifest.json").unlink()
    assert because(lab).endswith("run it again, and promote after it")


def test_a_model_swapped_beside_its_record_refuses(ready_lab):
    lab = ready_lab()
    key = lab.run.step_key("production_quantization", "model.gguf")
    lab.run.store.put_bytes(key, b"other weights")
    assert "lineage read model.gguf of production_quantization as" in refused(lab)


def test_an_approved_release_names_who_approved_which_manifest_and_why(ready_lab):
    lab = ready_lab(approval=True)
    answer(lab, "approve_release", "Approve", "bob")
    lab.execute("promote")
    approved, released = log_lines(lab)
    assert (approved["event"], approved["by"]) == ("approved", "bob")
    assert approved["about"] == MANIFEST_REF.find(lab.run).sha256
    assert approved["reason"] == "seen with the owner of the service"
    assert (released["event"], released["approved_by"]) == ("released", "bob")


def test_an_approval_of_another_release_of_other_evidence_or_taken_back_does_not_count(ready_lab):
    """The first is copied from a run whose manifest is another one, or names none."""
    lab = ready_lab(approval=True)
    answer(lab, "approve_release", "Approve", "bob")
    document = APPROVALS.find(lab.run)
    for about, shown in (("0" * 64, "000000000000, not for this one"), (None, "without a ha")):
        other = [one.model_copy(update={"about": about}) for one in document.approvals]
        APPROVALS.put(lab.run, document.model_copy(update={"approvals": other}))
        assert f"it was given for the manifest {shown}" in refused(lab)
    APPROVALS.put(lab.run, document)
    lab.leave("determinism", {}, [BROKEN])
    assert "the evidence of determinism has changed since the manifest" in refused(lab)
    answer(lab, "approve_release", "Reject", "carol")
    assert "no one has approved the release" in refused(lab)


@pytest.mark.parametrize(
    ("name", "known_as", "sentence"),
    [
        ("alice", "7", "alice started the run"),
        ("mallory", "9", "mallory is not an approver (alice, bob)"),
        # Another user of an approver's name is not that approver.
        ("bob", "9", "bob is not an approver (alice, bob)"),
    ],
)
def test_an_approval_by_the_wrong_person_does_not_count(ready_lab, name, known_as, sentence):
    """The task refuses such an answer; here it was written into the run past the task."""
    lab = ready_lab(approval=True)
    answer(lab, "approve_release", "Approve", name, known_as=known_as)
    lab.run.meta["approvers"] = [{"id": "7", "name": "alice"}, {"id": "8", "name": "bob"}]
    assert f"the approval does not count: {sentence}" in refused(lab)
    answer(lab, "approve_release", "Approve", "bob", known_as="8")
    lab.execute("promote")


def test_a_run_that_no_person_started_needs_two_approvers(ready_lab):
    lab = ready_lab(approval=True)
    lab.run.meta.update(started_by=None, approvers=["bob", {"id": "7", "name": "carol"}])
    answer(lab, "approve_release", "Approve", "bob")
    assert "bob alone has approved the release" in refused(lab)
    # The same person is no second one, whatever name an answer has.
    approvals.record_approval(lab.run, "approve_release", "Approve", Person("rob", "bob"))
    assert "rob alone has approved the release" in refused(lab)
    # A no in between takes the yes before it back.
    answer(lab, "approve_release", "Reject", "bob")
    approvals.record_approval(lab.run, "approve_release", "Approve", Person("carol", "7"))
    assert "carol alone has approved the release" in refused(lab)
    answer(lab, "approve_release", "Approve", "bob")
    lab.execute("promote")
    assert log_lines(lab)[-1]["approved_by"] == "carol, bob"


def test_the_policy_can_ask_for_an_approval_that_the_run_does_not(ready_lab, policy):
    policy(approval=True)
    assert "no one has approved the release" in refused(ready_lab())


def test_all_reasons_are_named_at_once(ready_lab):
    lab = ready_lab(approval=True)
    lab.leave("build_engine", {}, [HOLDS])
    lab.leave("fallback", {}, [BROKEN])
    lab.leave("adapter_merging", {}, [BROKEN])
    (lab.root / "store/models/model/test/lora.json").unlink()
    sentence = refused(lab)
    for part in ("adapter_merging (fail", "was not built", "no one has approved", "is missing"):
        assert part in sentence
    assert "fallback" not in sentence


def test_a_waiver_and_a_refusal_are_logged_with_the_release(ready_lab):
    reason = "the task has no stable order of answers"
    waiver = {"item": "determinism", "measurement": "flips", "up_to": 3, "reason": reason}
    lab = ready_lab(waivers=[waiver])
    answer(lab, "approve_release", "Reject", "carol")
    lab.execute("promote")
    waived, answered, released = log_lines(lab)
    assert (waived["event"], waived["item"], waived["by"]) == ("waived", "determinism", "alice")
    assert (waived["reason"], waived["measurement"]) == (reason, "flips up to 3.0")
    assert (answered["decision"], answered["by"]) == ("Reject", "carol")
    assert released["event"] == "released"


LOOSE = {"evaluation": {"min_gain": -1}}
LIMIT = {
    "item": "holdout_performance",
    "limit": "evaluation.min_gain",
    "reason": "the base already answers everything",
}


def test_a_looser_critical_limit_refuses_the_release(finished_lab):
    lab = finished_lab(name="model", profile="production", **LOOSE)
    lab.execute("lineage")
    sentence = refused(lab)
    assert "holdout_performance (fail: the policy: evaluation.min_gain is -1" in sentence


def test_a_looser_critical_limit_that_is_accepted_is_in_manifest_and_log(finished_lab):
    failed = {
        "item": "adapter_merging",
        "measurement": "limit_holds",
        "up_to": False,
        "reason": "the two agree in every answer",
    }
    lab = finished_lab(name="model", profile="production", **LOOSE, waivers=[LIMIT, failed])
    lab.leave("adapter_merging", {}, [BROKEN, MEASURED])
    lab.execute("lineage")
    asked = "a waiver of holdout_performance; a waiver of adapter_merging"
    with pytest.raises(UserError, match=asked):
        lab.execute("promote")
    assert not pointer_file(lab).exists()
    answer(lab, "approve_release", "Approve", "bob")
    lab.execute("promote")
    manifest = json.loads((lab.root / "store/models/model/test/manifest.json").read_text())
    (looser,) = manifest["policy"]["looser"]
    assert (looser["setting"], looser["value"], looser["allowed"]) == (
        "evaluation.min_gain", -1, 0,
    )  # fmt: skip
    assert (looser["by"], looser["approved_by"], looser["critical"]) == ("alice", None, True)
    assert manifest["evidence"]["holdout_performance"]["verdict"] == "waived"
    assert "policy.yaml" in [file["name"] for file in manifest["files"]]
    waived, _, approved, _ = log_lines(lab)
    assert waived["limit"] == "evaluation.min_gain is -1.0, the policy allows at least 0"
    assert (waived["by"], waived["approved_by"]) == ("alice", "bob")
    assert approved["reason"] == "seen with the owner of the service"
    assert verify(json.loads(pointer_file(lab).read_text())["manifest"]) == []


def forget_promotion(lab):
    """Undo what a promotion wrote."""
    folder = lab.root / "store/models/model"
    for path in (*folder.glob("*production.json*"), *folder.glob("test/*release.jsonl*")):
        path.unlink()
    lab.run.store.delete_prefix(lab.run.step_key("promote"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_promotion_killed_at_any_write_is_completed_once(ready_lab, moment):
    lab = ready_lab()
    whole, killed = lab.run, 0
    for number in range(1, 100):
        forget_promotion(lab)
        store = DyingStore(whole.store, number, moment, only_writes=True)
        lab.run = replace(whole, store=store)
        try:
            lab.execute("promote")
        except Killed:
            killed += 1
        else:
            break
        finally:
            lab.run = whole
        for _ in range(2):
            assert lab.execute("promote").summary == "model test is released to production"
        assert [line["event"] for line in log_lines(lab)] == ["released"]
        pointer = json.loads(pointer_file(lab).read_text())
        assert [move["version"] for move in pointer["history"]] == ["test"]
        assert verify(pointer["manifest"]) == []
    # The pointer, the log, and the step's own folder and record.
    assert killed >= 4


def test_the_second_of_two_promotions_at_once_is_told(ready_lab, monkeypatch):
    lab = ready_lab()
    look = promote.refusals

    def meanwhile(ctx, uri):
        reasons = look(ctx, uri)
        earlier_release(lab, "rival")
        return reasons

    with monkeypatch.context() as patch:
        patch.setattr(promote, "refusals", meanwhile)
        with pytest.raises(UserError) as told:
            lab.execute("promote")
    assert str(told.value).startswith(
        "model is not promoted: rival was released while this promotion ran"
    )
    assert not (lab.root / "store/models/model/test/release.jsonl").exists()
    pointer = json.loads(pointer_file(lab).read_text())
    assert pointer["version"] == "rival"
    # Somebody decides to release it over the other.
    lab.execute("promote")
    pointer = json.loads(pointer_file(lab).read_text())
    assert (pointer["version"], pointer["previous_version"]) == ("test", "rival")
    assert verify(pointer["manifest"]) == []


def test_a_late_retry_does_not_take_the_place_of_a_newer_release(ready_lab):
    lab = ready_lab()
    lab.execute("promote")
    newer = earlier_release(lab, "newer")
    assert "newer is released now" in lab.execute("promote").summary
    assert pointer_file(lab).read_bytes() == newer


def test_a_pointer_that_was_edited_refuses(ready_lab):
    lab = ready_lab()
    earlier_release(lab)
    document = json.loads(pointer_file(lab).read_text())
    edited = json.dumps({**document, "released_at": "2020-01-01T00:00:00Z"}, indent=1).encode()
    lab.run.store.put_bytes("models/model/production.json", edited)
    with pytest.raises(UserError, match="its released_at is not that of the last release"):
        lab.execute("promote")
    assert pointer_file(lab).read_bytes() == edited


def test_a_review_that_comes_late_says_so_at_its_end(ready_lab, monkeypatch, capsys):
    lab = ready_lab()
    judged_as = [HOLDS, MEASURED]
    monkeypatch.setattr("tuneline.step.execute", lambda step, uri: lab.leave(step, {}, judged_as))
    evaluation._judged(lab.run)
    assert "not part of the version" not in capsys.readouterr().out
    judged_as[0] = BROKEN
    evaluation._judged(lab.run)
    said = capsys.readouterr().out
    assert "human_review: fail" in said
    assert "not part of the version of this run: lineage read measurements of human_review" in said
    assert "start a new run for a new version" in said
