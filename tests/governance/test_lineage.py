"""lineage: a traceable release passes, a gap in the chain of evidence does not."""

import json
from hashlib import sha256

import pytest
from tests.governance.conftest import CLEAN_CODE, HOLDS, MEASURED, SHIPPED
from tests.lab.runs import broken, value

from tuneline.artifacts.governance import MANIFEST_REF, Manifest, PodImage, image_of
from tuneline.evidence import measure
from tuneline.governance import lineage
from tuneline.governance.release.verify import verify
from tuneline.models.base_model import digest_of
from tuneline.step import leave_killed
from tuneline.store import CorruptObject
from tuneline.verdicts import checklist


def manifest_of(lab):
    return json.loads((lab.root / "store/models" / "model/test/manifest.json").read_text())


def test_a_finished_run_is_tied_to_data_code_and_parameters(finished_lab):
    lab = finished_lab(profile="production", name="model")
    texts = {"NOTICE": "Built with", "LICENSES.md": "# Licences", "licenses/LICENSE": "text"}
    lab.leave("license_audit", {**texts, "licenses.csv": "kind"}, [HOLDS])
    evidence = lab.execute("lineage")
    assert evidence.verdict == "pass"
    assert value(evidence, "evidences") == 24
    reference = MANIFEST_REF.read(lab.context("promote"))
    assert (reference.version, verify(reference.uri)) == ("test", [])
    manifest = manifest_of(lab)
    keys = "schema created_at name version run started_by airflow_run reason base_model dataset"
    keys += " dataset_file code hyperparameters engine defaults evidence environments seeds"
    keys += " previous_version parent policy signature basis files"
    assert list(manifest) == keys.split()
    assert manifest["schema"] == "tuneline/manifest/1"
    assert manifest["started_by"] == "alice"
    assert manifest["code"] == CLEAN_CODE
    assert manifest["dataset"] == {"version": "d" * 64, "rows": 106, "source": "rows.jsonl"}
    assert manifest["hyperparameters"]["lora"] == {"r": 16}
    assert manifest["hyperparameters"]["plan"] == {"micro_batch": 4}
    assert manifest["engine"] == {"engine": "llama_cpp"}
    assert manifest["defaults"] == {"temperature": 0}
    assert manifest["evidence"]["fallback"] == {
        "phase": "governance",
        "severity": "recommended",
        "verdict": "pass",
        "summary": "left by a test",
        "because": "every limit holds",
        "file": "evidence/fallback/evidence.json",
    }
    stated = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
    assert stated["model.gguf"] == len(SHIPPED["production_quantization"]["model.gguf"])
    assert {"adapter/adapter_config.json", "engine.json", "tokenizer.json"} <= set(stated)
    assert {"config.json", "evidence/license_audit/evidence.json"} <= set(stated)
    assert {"evidence/pii_scrubbing/extraction_audit.json", *texts} <= set(stated)


def test_an_item_that_measured_other_bytes_fails(finished_lab):
    lab = finished_lab()
    other = measure("candidate_sha256", "0" * 64, "sha256")
    lab.leave("determinism", {}, [HOLDS, other])
    lab.leave("fallback", {}, [HOLDS])
    lab.leave("extraction_audit", {}, [other])
    evidence = lab.execute("lineage")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"items_measured_on_other_bytes"}
    named = "not measured on the bytes that ship: determinism, fallback, extraction_audit"
    assert named in evidence.summary


def test_a_run_whose_model_nobody_tried_to_extract_from_fails(finished_lab):
    lab = finished_lab(without="extraction_audit")
    evidence = lab.execute("lineage")
    assert broken(evidence) == {"items_measured_on_other_bytes"}
    assert "not measured on the bytes that ship: extraction_audit" in evidence.summary


def test_a_checkpoint_ships_whole(finished_lab):
    lab = finished_lab(name="model")
    files = {"merged/tokenizer.json": "{}", "merged/config.json": "{}", "merged/w.safetensors": "w"}
    lab.leave("export_candidate", files)
    hashes = {
        name.removeprefix("merged/"): sha256(text.encode()).hexdigest()
        for name, text in files.items()
    }
    choice = {"variant": "f16", "engine": "vllm", "sha256": digest_of(hashes)}
    lab.leave("production_quantization", {"choice.json": json.dumps(choice)}, [HOLDS])
    evidence = lab.execute("lineage")
    # The other items of this run measured `model.gguf`.
    assert broken(evidence) == {"items_measured_on_other_bytes"}
    stated = {entry["name"]: entry["sha256"] for entry in manifest_of(lab)["files"]}
    assert hashes.items() <= {n.removeprefix("model/"): h for n, h in stated.items()}.items()
    assert "model.gguf" not in stated


def test_a_manifest_with_more_or_fewer_keys_is_readable():
    old = '{"schema": "tuneline/manifest/1", "files": [{"name": "a", "sha256": "0", "bytes": 1}]}'
    assert Manifest.model_validate_json(old).files[0].name == "a"
    newer = Manifest.model_validate_json(old.replace('"files"', '"signed_by": "x", "files"'))
    assert newer == Manifest.model_validate_json(old)


def test_evidence_out_of_date_fails(finished_lab):
    lab = finished_lab(name="model")

    def judge(ctx):
        ctx.read_json("train", "adapter/adapter_config.json")
        return ctx.conclude("judged", [HOLDS, MEASURED])

    lab.execute("determinism", judge)
    files = {"adapter/adapter_config.json": '{"r": 8}', "adapter/adapter_model.safetensors": "a"}
    lab.leave("train", files)
    evidence = lab.execute("lineage")
    assert broken(evidence) == {"causes_of_outdated_evidence"}
    assert "determinism read adapter/adapter_config.json of train" in evidence.summary
    assert manifest_of(lab)["evidence"]["determinism"]["verdict"] == "not_run"


def test_a_file_changed_after_its_evidence_was_written_is_not_shipped(finished_lab):
    lab = finished_lab()
    shipped = lab.artifact("production_quantization", "model.gguf")
    shipped.write_bytes(b"Weights")
    with pytest.raises(CorruptObject, match=r"model\.gguf"):
        lab.execute("lineage")
    assert not (lab.root / "store/models").exists()


def test_a_missing_evidence_fails(finished_lab):
    evidence = finished_lab(without="determinism").execute("lineage")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"evidences"}


def test_a_file_that_changes_while_it_is_written_fails(finished_lab, monkeypatch):
    """The store loses a byte between the write and the verification."""
    lab = finished_lab(name="model")
    write = lineage.write_manifest

    def losing(store, prefix, manifest):
        (store.root / prefix / "adapter/adapter_config.json").write_bytes(b"{")
        return write(store, prefix, manifest)

    monkeypatch.setattr(lineage, "write_manifest", losing)
    evidence = lab.execute("lineage")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"hashes_that_differ"}


@pytest.mark.parametrize(
    ("profile", "change", "verdict", "names"),
    [
        ("production", {"dirty": True}, "fail", {"code_is_clean"}),
        ("laptop", {"dirty": True}, "warn", {"code_is_clean"}),
        (
            "production",
            {"commit": None, "dirty": None},
            "fail",
            {"code_is_versioned", "code_is_clean"},
        ),
    ],
)
def test_dirty_or_unversioned_code_fails_in_production(
    finished_lab, profile, change, verdict, names
):
    code = {**CLEAN_CODE, **change, "note": "3 uncommitted changes"}
    evidence = finished_lab(code, profile=profile).execute("lineage")
    assert (evidence.verdict, broken(evidence)) == (verdict, names)
    assert "3 uncommitted changes" in evidence.summary


@pytest.mark.parametrize(("profile", "verdict"), [("production", "fail"), ("laptop", "warn")])
def test_a_step_of_another_commit_fails_in_production(finished_lab, monkeypatch, profile, verdict):
    lab = finished_lab(profile=profile)
    with monkeypatch.context() as patch:
        patch.setattr("tuneline.environment.own_code", lambda: {**CLEAN_CODE, "commit": "b" * 40})
        lab.leave("fallback", {}, [HOLDS, MEASURED])
    evidence = lab.execute("lineage")
    assert evidence.verdict == verdict
    assert broken(evidence) == {"steps_of_other_code"}
    assert "fallback: the step's code is of commit bbbbbbbbbbbb" in evidence.summary


def test_environments_state_all_packages_code_image_and_seeds(finished_lab):
    lab = finished_lab(name="model")
    ran = PodImage(image="tuneline/ml:7", image_id="tuneline/ml@sha256:" + "d" * 64)
    image_of("determinism").put(lab.run, ran)
    canaries = [HOLDS, measure("canary_seed", "9f", "text")]
    lab.leave("pii_scrubbing", {}, canaries)
    assert value(lab.execute("lineage"), "images_known_by_digest") == 1
    manifest = manifest_of(lab)
    in_pod = next(one for one in manifest["environments"] if one["image_id"])
    assert (in_pod["steps"], in_pod["image_id"]) == (["determinism"], ran.image_id)
    assert {"pydantic", "pytest"} <= in_pod["packages"].keys()
    assert all(one["code"]["commit"] == CLEAN_CODE["commit"] for one in manifest["environments"])
    assert manifest["seeds"] == {"training.seed": 7, "pii_scrubbing.canary_seed": "9f"}


def test_an_item_whose_step_broke_does_not_stop_the_release(finished_lab):
    lab = finished_lab(name="model", profile="production")
    leave_killed(lab.run.uri, "determinism", "its pod was killed", {})
    evidence = lab.execute("lineage")
    assert evidence.verdict == "pass"
    stated = manifest_of(lab)["evidence"]["determinism"]
    assert stated["verdict"] == "fail"
    assert "its pod was killed" in stated["summary"]
    assert [row.item for row in checklist(lab.run) if row.stops_release] == []


@pytest.mark.parametrize(("profile", "verdict"), [("laptop", "warn"), ("production", "fail")])
def test_an_image_with_another_policy_is_found(finished_lab, policy, profile, verdict):
    lab = finished_lab(profile=profile)
    policy(version=9)
    evidence = lab.execute("lineage")
    assert evidence.verdict == verdict
    assert broken(evidence) == {"policy_is_the_runs"}


def test_a_run_without_a_recorded_policy_is_found(finished_lab):
    lab = finished_lab(profile="production")
    del lab.run.meta["policy"]
    assert broken(lab.execute("lineage")) == {"policy_is_the_runs"}
