"""The statement of lineage is released with the version, and each change of it is named."""

import base64
import json

import pytest
from jsonschema import Draft202012Validator
from tests.governance.conftest import CLEAN_CODE, HOLDS, MEASURED, WEIGHTS_SHA256
from tests.governance.documents.test_statements import RESULT, STATEMENT
from tests.lab.signatures import key_pair

from tuneline.artifacts.governance import Manifest, ManifestFile
from tuneline.artifacts.release_log import Released
from tuneline.governance.release.log_check import lineage_differences
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.pointer import last_move, read_pointer, record
from tuneline.governance.release.verify import examine
from tuneline.store import open_store

FOLDER = "models/model/test"
PLAIN, SIGNED = (f"{FOLDER}/attestations/lineage.{kind}.json" for kind in ("intoto", "dsse"))
EVIDENCE = f"{FOLDER}/evidence/lineage/evidence.json"


def promoted(finished_lab, **overrides):
    lab = finished_lab(CLEAN_CODE, name="model", profile="production", **overrides)
    assert lab.execute("lineage").verdict == "pass"
    lab.execute("promote")
    return lab


def examined(lab, key=None):
    return examine(lab.run.store.uri_of(f"{FOLDER}/manifest.json"), key)


def edited(store, key, change):
    """Change a document and give it a fitting hash, as somebody does who knows the store."""
    document = json.loads(store.get_bytes(key))
    change(document)
    store.put_bytes(key, json.dumps(document).encode())


def remove(store, key):
    """Delete a file and the note of its hash."""
    path = store.root / key
    for found in path.parent.glob(f"*{path.name}*"):
        found.unlink()


def test_lineage_has_a_statement_that_names_the_manifest(finished_lab):
    lab = promoted(finished_lab)
    store = lab.run.store
    statement = json.loads(store.get_bytes(PLAIN))
    Draft202012Validator(STATEMENT).validate(statement)
    Draft202012Validator(RESULT).validate(statement["predicate"])
    manifest = store.rehash(f"{FOLDER}/manifest.json").sha256
    hashes = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert hashes == {"manifest.json": manifest, "model.gguf": WEIGHTS_SHA256}
    predicate = statement["predicate"]
    assert predicate["result"] == "PASSED"
    assert "hashes_that_differ" in predicate["passedTests"]
    assert predicate["configuration"][-1]["digest"]["sha256"] == store.rehash(EVIDENCE).sha256
    assert store.get_bytes(EVIDENCE) == store.get_bytes(
        lab.run.step_key("lineage", "evidence.json")
    )
    found = examined(lab)
    assert found.differences == []
    assert not any("lineage" in note for note in found.unchecked)
    # A log that was rewritten to fit the statement of another release does not help.
    faults, _ = lineage_differences(store, "model", "test", "0" * 64, None)
    assert faults == [f"{store.uri_of(PLAIN)} is about another manifest"]


def test_each_change_of_it_is_named(finished_lab):
    lab = promoted(finished_lab)
    store = lab.run.store
    kept = {key: store.get_bytes(key) for key in (PLAIN, EVIDENCE)}
    path = store.root / PLAIN
    faults = {
        "a byte": lambda: path.write_bytes(kept[PLAIN].replace(b"PASSED", b"FAILED")),
        "a result with a fitting hash": lambda: edited(
            store, PLAIN, lambda found: found["predicate"].update(result="WARNED")
        ),
        "no statement": lambda: remove(store, PLAIN),
        "no evidence": lambda: remove(store, EVIDENCE),
        "other evidence": lambda: edited(store, EVIDENCE, lambda e: e.update(verdict="warn")),
        "a second statement": lambda: store.put_bytes(SIGNED, b"{}"),
    }
    for name, plant in faults.items():
        plant()
        [sentence] = examined(lab).differences
        assert "lineage" in sentence, name
        remove(store, SIGNED)
        for key, content in kept.items():
            store.put_bytes(key, content)
        assert examined(lab).differences == [], name


def test_a_signed_release_has_a_signed_one_and_a_forged_one_is_named(finished_lab, tmp_path):
    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    private, public = key_pair(tmp_path, "ours")
    _, other = key_pair(tmp_path, "others")
    lab = promoted(finished_lab, governance={"signing_key": str(private)})
    store = lab.run.store
    payload = json.loads(base64.b64decode(json.loads(store.get_bytes(SIGNED))["payload"]))
    Draft202012Validator(STATEMENT).validate(payload)
    assert not store.exists(PLAIN)
    assert examined(lab, public).differences == []
    manifest = store.rehash(f"{FOLDER}/manifest.json").sha256
    [sentence], _ = lineage_differences(store, "model", "test", manifest, other)
    assert f"is not signed by {other}" in sentence

    def forge(envelope):
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["predicate"]["passedTests"] = ["everything"]
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    edited(store, SIGNED, forge)
    remove(store, f"{FOLDER}/release.jsonl")
    remove(store, "models/model/production.json")
    forged = Released(
        previous_version=None,
        follows=None,
        run=lab.run.uri,
        lineage_sha256=store.rehash(SIGNED).sha256,
    )
    record(read_pointer(store, "model"), "test", manifest, [forged])
    assert examined(lab).differences == []
    [sentence] = examined(lab, public).differences
    assert f"lineage.dsse.json is not signed by {public}" in sentence


def test_what_a_killed_promotion_left_is_said_and_replaced(finished_lab):
    lab = finished_lab(CLEAN_CODE, name="model", profile="production")
    lab.execute("lineage")
    lab.run.store.put_bytes(PLAIN, b"half of it")
    found = examined(lab)
    assert found.differences == []
    assert any("the release log does not name it" in note for note in found.unchecked)
    lab.leave("determinism", {}, [HOLDS, MEASURED])
    lab.execute("promote")
    assert examined(lab).differences == []


def test_a_release_from_before_there_were_such_statements_has_none(tmp_path):
    store = open_store(tmp_path.as_uri())
    ref = store.put_bytes("models/model/test/model.gguf", b"weights")
    files = [ManifestFile(name="model.gguf", sha256=ref.sha256, bytes=ref.bytes)]
    manifest = Manifest(name="model", version="test", files=files)
    digest = write_manifest(store, FOLDER, manifest)
    pointed = read_pointer(store, "model")
    previous, follows = last_move(pointed)
    released = Released(previous_version=previous, follows=follows, run="file:///runs/test")
    record(pointed, "test", digest, [released])
    uri = store.uri_of(f"{FOLDER}/manifest.json")
    assert examine(uri).differences == []
    store.put_bytes(PLAIN, b"{}")
    [sentence] = examine(uri).differences
    assert "lineage.intoto.json is a file too many" in sentence
