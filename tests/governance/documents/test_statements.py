"""The verdicts as in-toto statements, and the run as SLSA provenance."""

import base64
import json

import pytest
from google.protobuf.json_format import Parse
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Result
from jsonschema import Draft202012Validator
from tests.governance.conftest import BROKEN, HOLDS, MEASURED, WEIGHTS_SHA256
from tests.governance.documents.conftest import folder
from tests.lab.signatures import key_pair

from tuneline.artifacts.answers import APPROVALS, Approval, Approvals
from tuneline.catalogue import ITEMS
from tuneline.evidence import Verdict, measure
from tuneline.governance.documents.statements import result_of
from tuneline.governance.release.verify import verify

# Written from the specifications of in-toto (statement v1, test-result v0.1, DSSE), not from the
# code: they publish no JSON Schema.
DIGEST = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]+$"}}
DESCRIPTOR = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "digest": DIGEST},
    "anyOf": [{"required": ["name"]}, {"required": ["uri"]}, {"required": ["digest"]}],
}
STATEMENT = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {**DESCRIPTOR, "required": ["digest"]},
        },
        "predicateType": {"type": "string", "format": "uri"},
        "predicate": {"type": "object"},
    },
}
NAMES = {"type": "array", "items": {"type": "string"}}
RESULT = {
    "type": "object",
    "required": ["result", "configuration"],
    "additionalProperties": False,
    "properties": {
        "result": {"enum": ["PASSED", "WARNED", "FAILED"]},
        "configuration": {"type": "array", "items": DESCRIPTOR},
        "url": {"type": "string"},
        "passedTests": NAMES,
        "warnedTests": NAMES,
        "failedTests": NAMES,
    },
}


def statement(lab, name):
    return json.loads((folder(lab) / f"attestations/{name}.intoto.json").read_text())


def result(lab, item):
    return statement(lab, item)["predicate"]


def test_each_item_has_a_statement_about_the_models_bytes(documented):
    lab = documented()
    names = {path.name for path in (folder(lab) / "attestations").glob("*.json")}
    expected = {item.id for item in ITEMS if item.id != "lineage"} | {"provenance"}
    assert names == {f"{name}.intoto.json" for name in expected}
    for name in expected:
        found = statement(lab, name)
        Draft202012Validator(STATEMENT).validate(found)
        subject = {"name": "model.gguf", "digest": {"sha256": WEIGHTS_SHA256}}
        assert found["subject"] == [subject]
    for name in expected - {"provenance"}:
        found = statement(lab, name)
        assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
        Draft202012Validator(RESULT).validate(found["predicate"])
        Parse(json.dumps(found["predicate"]), Result())
        assert found["predicate"]["result"] == "PASSED"
    assert result(lab, "holdout_performance")["passedTests"] == ["gain_lower"]
    assert verify(lab.run.store.uri_of("models/model/test/manifest.json")) == []


def test_a_planted_failure_is_named(documented):
    cold = measure("cold", 9.0, "s", "<", 2.0, on_breach="warn")

    def change(lab):
        lab.leave("fallback", {}, [BROKEN, cold, HOLDS, MEASURED])
        lab.leave("cold_start", {}, [cold, MEASURED])

    lab = documented(change)
    fallback = result(lab, "fallback")
    assert fallback["result"] == "FAILED"
    assert fallback["failedTests"] == ["limit_holds"]
    assert fallback["warnedTests"] == ["cold"]
    assert fallback["passedTests"] == ["limit_holds"]
    noted = fallback["configuration"][-1]["annotations"]
    assert (noted["verdict"], noted["severity"]) == ("fail", "recommended")
    assert "limit_holds is False, must be == True" in noted["because"]
    assert result(lab, "cold_start")["result"] == "WARNED"


def test_an_item_that_was_not_run_has_a_failed_statement(finished_lab):
    lab = finished_lab(without="determinism", name="model")
    lab.execute("lineage")
    found = result(lab, "determinism")
    assert found["result"] == "FAILED"
    assert [entry["name"] for entry in found["configuration"]] == ["config.json"]


@pytest.mark.parametrize(
    ("verdict", "laptop", "production"),
    [
        (Verdict.PASS, "PASSED", "PASSED"),
        (Verdict.WARN, "WARNED", "WARNED"),
        (Verdict.FAIL, "FAILED", "FAILED"),
        (Verdict.NOT_RUN, "FAILED", "FAILED"),
        (Verdict.INCONCLUSIVE, "WARNED", "FAILED"),
        (Verdict.NOT_APPLICABLE, "WARNED", "WARNED"),
        (Verdict.WAIVED, "WARNED", "WARNED"),
    ],
)
def test_only_a_pass_is_passed(verdict, laptop, production):
    assert result_of(verdict, production=False) == laptop
    assert result_of(verdict, production=True) == production


def test_the_provenance_names_base_data_code_and_settings(documented):
    lab = documented()
    found = statement(lab, "provenance")
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = found["predicate"]
    Parse(json.dumps(predicate), Provenance())
    build, run = predicate["buildDefinition"], predicate["runDetails"]
    # What the specification requires.
    assert build["buildType"]
    assert run["builder"]["id"]
    assert build["externalParameters"]["name"] == "model"
    assert build["internalParameters"]["lora"] == {"r": 16}
    manifest = json.loads((folder(lab) / "manifest.json").read_text())
    materials = {entry["name"]: entry for entry in build["resolvedDependencies"]}
    assert materials["base model"]["digest"] == {
        "tunelineFileHashes": manifest["base_model"]["digest"]
    }
    assert materials["code"]["digest"] == {"gitCommit": manifest["code"]["commit"]}
    assert materials["source"]["uri"] == "file:///data/rows%7C1.jsonl"
    byproducts = {entry["name"]: entry["digest"]["sha256"] for entry in run["byproducts"]}
    stated = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    assert byproducts.items() <= stated.items()
    assert len(byproducts) >= len(ITEMS) - 1


def test_a_step_that_is_run_again_writes_the_same(documented):
    lab = documented()
    first = {path: path.read_bytes() for path in folder(lab).rglob("*") if path.is_file()}
    # Whatever people have answered since.
    answer = Approval(subject="approve_release", decision="Approve", by="ann", at="2026-03-04")
    APPROVALS.put(lab.run, Approvals(approvals=[answer]))
    assert lab.execute("lineage").verdict in ("pass", "warn")
    assert {path: path.read_bytes() for path in folder(lab).rglob("*") if path.is_file()} == first


def test_a_run_without_a_model_has_statements_about_its_adapter(documented):
    lab = documented(lambda lab: lab.leave("production_quantization", {}, [HOLDS]))
    subjects = [entry["name"] for entry in statement(lab, "fallback")["subject"]]
    assert subjects == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]


@pytest.fixture
def key(tmp_path):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pytest.importorskip("model_signing", reason="requirements/signing.txt is not installed")
    private, public = key_pair(tmp_path, "release")
    return private, load_pem_public_key(public.read_bytes())


def verified(envelope, public):
    """Check an envelope as the DSSE specification says, by cryptography alone."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    public.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    return json.loads(payload)


def test_a_signed_release_has_signed_statements(documented, key):
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    path, public = key
    lab = documented(governance={"signing_key": str(path)})
    files = sorted((folder(lab) / "attestations").iterdir())
    files = [file for file in files if not file.name.startswith(".")]
    assert {file.name.partition(".")[2] for file in files} == {"dsse.json"}
    assert len(files) == len(ITEMS)
    for file in files:
        envelope = json.loads(file.read_text())
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        Draft202012Validator(STATEMENT).validate(verified(envelope, public))
    with pytest.raises(InvalidSignature):
        verified(envelope, ec.generate_private_key(ec.SECP256R1()).public_key())
    other = base64.b64encode(b'{"result": "PASSED"}').decode()
    with pytest.raises(InvalidSignature):
        verified({**envelope, "payload": other}, public)
    # A second signature would have other bytes than the stored one.
    assert lab.execute("lineage").verdict in ("pass", "warn")
    assert json.loads(files[-1].read_text()) == envelope
