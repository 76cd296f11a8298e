"""The licence audit: clean licences pass, planted ones are caught, people's answers count once."""

import json
from email.message import Message

import pytest
from tests.lab.nights import release
from tests.lab.runs import broken, value
from tests.lab.tiny_models import make_model

from tuneline.artifacts.answers import Person
from tuneline.config import build_config
from tuneline.config.data import RAMPART
from tuneline.evidence import conclude
from tuneline.governance import license_audit
from tuneline.licenses import answers as license_answers
from tuneline.licenses.duties import question_text
from tuneline.licenses.findings import of_packages, open_of_run, package_measurements
from tuneline.licenses.packages import PackageLicense, installed, read

REASON = "read by the legal team; internal and commercial use is fine"


def entry(**fields):
    """A package as its metadata state it."""
    blank = {"name": "thing", "version": "1", "expression": None, "license": None}
    return {**blank, "classifiers": [], "texts": [], **fields}


@pytest.mark.parametrize(
    ("stated", "license_id", "place"),
    [
        ({"expression": "MIT", "license": "GPL"}, "MIT", "License-Expression"),
        ({"license": "BSD 3-Clause\n\nCopyright …"}, "BSD-3-Clause", "License"),
        (
            {"license": "Dual License", "classifiers": ["BSD License", "Apache Software License"]},
            "BSD AND Apache-2.0",
            "classifier",
        ),
        ({"texts": ["The MIT License\n\nCopyright"]}, "MIT", "the text of its licence"),
        ({"license": "House"}, "House", "License"),
        ({}, "NOASSERTION", "no licence in the metadata"),
    ],
)
def test_package_metadata_is_read_in_order(stated, license_id, place):
    assert read(entry(**stated)) == (license_id, place)


def test_a_distribution_on_disk_is_found_with_its_licence_file(tmp_path, monkeypatch):
    folder = tmp_path / "planted-1.0.dist-info"
    (folder / "licenses").mkdir(parents=True)
    meta = Message()
    meta["Metadata-Version"], meta["Name"], meta["Version"] = "2.4", "Planted", "1.0"
    meta["License-File"] = "COPYING"
    (folder / "METADATA").write_text(str(meta))
    (folder / "licenses" / "COPYING").write_text("MIT License\n\nCopyright")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {package.name: package for package in installed().packages}
    assert found["Planted"].license == "MIT"


def test_another_python_lists_its_own_packages(tmp_path):
    """What an engine's own interpreter holds is not what this process holds."""
    import sys

    here, there = installed(), installed(sys.executable)
    assert [p.name for p in there.packages] == [p.name for p in here.packages]
    script = tmp_path / "python"
    listed = {"prefix": "/nv", "packages": [entry(name="tensorrt_llm", license="AGPL")]}
    script.write_text(f"#!/bin/sh\necho '{json.dumps(listed)}'\n")
    script.chmod(0o755)
    found = installed(str(script))
    assert (found.prefix, found.has("tensorrt-llm"), found.has("pytest")) == ("/nv", True, False)
    assert found.packages == [PackageLicense("tensorrt_llm", "1", "AGPL", "License")]


@pytest.mark.parametrize(
    ("license_id", "use", "verdict"),
    [
        ("MIT", "distribution", "pass"),
        ("AGPL", "distribution", "fail"),
        ("GPL-3.0-only", "commercial", "pass"),
        ("GPL-3.0-only", "distribution", "fail"),
        ("House", "internal", "warn"),
        ("NOASSERTION", "internal", "warn"),
    ],
)
def test_packages(license_id, use, verdict):
    config = build_config({"data": {"source": "x"}, "governance": {"intended_use": use}})
    findings = of_packages([PackageLicense("thing", "1", license_id, "License")], config)
    assert conclude(package_measurements(findings)) == verdict


def test_a_stated_licence_fills_a_gap_and_corrects_nothing(monkeypatch):
    gap, own, known = entry(name="Some.Thing"), entry(name="other"), entry(name="vllm")
    packages = [gap, own | {"expression": "AGPL-3.0-only"}, known]
    monkeypatch.setattr("tuneline.licenses.stated.stated_licenses", lambda: packages)
    found = installed(stated={"some-thing": "mit", "other": "MIT"}).packages
    assert [package.license for package in found] == ["MIT", "AGPL-3.0-only", "Apache-2.0"]
    assert found[0].read_from == "governance.package_licenses"
    # The rules know an engine whose wheel states nothing.
    assert found[2].read_from == "https://github.com/vllm-project/vllm/blob/main/LICENSE"


def test_what_ships_here_is_allowed_for_distribution():
    config = build_config({"data": {"source": "x"}, "governance": {"intended_use": "distribution"}})
    findings = of_packages(installed().packages, config)
    assert len(findings) > 100
    assert [f"{f.name}: {f.rule}" for f in findings if not f.allowed] == []


@pytest.fixture
def audited(make_lab, tmp_path, monkeypatch):
    """Make a run of a random base model with a card, and audit it."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    make_model(base)

    def make(
        license_id="apache-2.0",
        data="MIT",
        profile="laptop",
        run_id="test",
        pii_ner=True,
        source="rows.jsonl",
        **governance,
    ):
        card = f"---\nlicense: {license_id}\n---\n" if license_id else ""
        (base / "README.md").write_text(card)
        settings = {
            "base_model": str(base),
            "profile": profile,
            "data": {"source": source, "license": data, "pii_ner": pii_ner},
            "governance": governance,
        }
        if profile == "production":
            settings["evaluation"] = {"min_metric": 0.5}
        return make_lab(settings, run_id=run_id)

    return make


def test_a_clean_run_passes_and_leaves_the_files_of_the_release(audited):
    lab = audited()
    evidence = lab.execute("license_audit")
    assert evidence.verdict == "pass"
    assert "commercial use is allowed" in evidence.summary
    assert value(evidence, "packages_audited") > 100
    assert value(evidence, "detector_license") == "CC-BY-4.0"
    audited_here = lab.artifact("license_audit", "licenses.csv").read_text()
    assert f"detector,{RAMPART},CC-BY-4.0," in audited_here
    notice = lab.artifact("license_audit", "NOTICE").read_text()
    # Nothing of the detector is in a release.
    assert "by fine-tuning; its weights were changed" in notice
    assert RAMPART not in notice
    assert "https://www.apache.org/licenses/LICENSE-2.0" in (
        lab.artifact("license_audit", "LICENSES.md").read_text()
    )


@pytest.mark.parametrize(
    ("license_id", "data", "profile", "governance", "verdict", "names"),
    [
        ("cc-by-nc-4.0", "MIT", "laptop", {}, "fail", {"base_model_allowed"}),
        (None, "MIT", "laptop", {"intended_use": "internal"}, "warn", {"base_model_allowed"}),
        (None, "MIT", "production", {"intended_use": "internal"}, "fail", {"base_model_allowed"}),
        ("house", "MIT", "production", {}, "fail", {"base_model_allowed"}),
        ("mit", None, "laptop", {}, "warn", {"dataset_allowed"}),
        ("mit", None, "production", {}, "fail", {"dataset_allowed"}),
        ("mit", "CC-BY-NC-4.0", "laptop", {}, "fail", {"dataset_allowed"}),
        ("mit", "MIT", "laptop", {"generated_by": {"*": "llama2"}}, "fail", {"generators_allowed"}),
        ("mit", "MIT", "laptop", {"generated_by": {"*": "openai"}}, "warn", {"generators_allowed"}),
    ],
)
def test_planted_licences(audited, license_id, data, profile, governance, verdict, names):
    evidence = audited(license_id, data, profile, **governance).execute("license_audit")
    assert (evidence.verdict, broken(evidence)) == (verdict, names)
    assert "use is allowed" not in evidence.summary


@pytest.mark.parametrize(
    ("served_by", "stated", "base", "profile", "verdict"),
    [
        ("a-larger", "openai", "mit", "laptop", "warn"),
        ("a-larger", "openai", "mit", "production", "fail"),
        ("a-larger", None, "mit", "production", "fail"),
        # The base of what is trained now may be another one than that of what answered.
        ("a", "llama2", "mit", "laptop", "fail"),
        ("a", "apache-2.0", "mit", "production", "pass"),
    ],
)
def test_whose_answers_people_accepted_is_read_from_the_rows(
    audited, tmp_path, served_by, stated, base, profile, verdict
):
    reviewed = tmp_path / "reviewed" / "a" / f"{'0' * 64}.jsonl"
    reviewed.parent.mkdir(parents=True)
    row = {"served_by": served_by, "license": stated}
    reviewed.write_text(f"{json.dumps(row)}\n" * 20)
    lab = audited(base, "CC-BY-4.0", profile, source=["rows.jsonl", reviewed.as_uri()])
    evidence = lab.execute("license_audit")
    assert evidence.verdict == verdict
    assert broken(evidence) == (set() if verdict == "pass" else {"generators_allowed"})
    assert verdict == "pass" or served_by in evidence.summary


@pytest.mark.parametrize(
    ("license_id", "profile", "governance", "verdict"),
    [
        ("mit", "production", {}, "pass"),
        ("cc-by-nc-4.0", "laptop", {"intended_use": "research"}, "pass"),
        ("cc-by-nc-4.0", "laptop", {}, "warn"),
        ("cc-by-nc-4.0", "production", {}, "fail"),
        (None, "production", {}, "fail"),
    ],
)
def test_the_licence_of_another_detector(
    audited, tmp_path, license_id, profile, governance, verdict
):
    detector = tmp_path / "detector"
    detector.mkdir()
    (detector / "README.md").write_text(f"---\nlicense: {license_id}\n---\n" * bool(license_id))
    lab = audited(pii_ner=["default", str(detector)], profile=profile, **governance)
    evidence = lab.execute("license_audit")
    assert evidence.verdict == verdict
    assert broken(evidence) == (set() if verdict == "pass" else {"detectors_allowed"})


def accept(lab, decision="Approve", asked=None, reason=REASON):
    given = open_of_run(lab.run) if asked is None else asked
    license_answers.record(lab.run, given, decision, Person("carol"), reason)


def test_a_person_accepts_what_the_rules_leave_open_by_name_and_reason(audited):
    lab = audited("house", profile="production")
    assert "tuneline licenses accept" in lab.execute("license_audit").summary
    accept(lab)
    evidence = lab.execute("license_audit")
    assert evidence.verdict == "pass"
    assert f"accepted by carol: {REASON}" in evidence.summary
    assert any(ref.name == "license_answers.json" for ref in evidence.inputs)
    approvals = json.loads(lab.run.store.get_bytes(lab.run.key("approvals.json")))["approvals"]
    assert [(a["subject"], a["by"]) for a in approvals] == [("license_audit", "carol")]
    assert "accepted by carol" in lab.artifact("license_audit", "LICENSES.md").read_text()


def test_an_answer_that_does_not_accept_this_licence_changes_nothing(audited):
    lab = audited("house", profile="production")
    lab.execute("license_audit")
    (asked,) = open_of_run(lab.run)
    accept(lab, asked=[asked.model_copy(update={"license": "LicenseRef-another"})])
    assert lab.execute("license_audit").verdict == "fail"
    accept(lab, "Reject")
    assert lab.execute("license_audit").verdict == "fail"


def test_an_approval_cannot_allow_what_the_rules_refuse(audited):
    lab = audited("cc-by-nc-4.0", profile="production")
    finding = license_audit.findings_of(lab.run.config, license_audit.base_of(lab.context("train")))
    accept(lab, asked=[finding[0].asked])
    assert lab.execute("license_audit").verdict == "fail"


def test_an_approval_needs_a_reason_and_a_question(audited):
    lab = audited("house")
    lab.execute("license_audit")
    with pytest.raises(Exception, match="needs a reason of at least 10"):
        accept(lab, reason=" ok ")
    with pytest.raises(Exception, match="no licence of this run waits"):
        accept(lab, asked=[])
    assert not lab.run.store.exists(lab.run.key("approvals.json"))


def test_the_duties_of_llama_become_files(audited, tmp_path):
    (tmp_path / "base" / "LICENSE.txt").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT …")
    lab = audited("llama3.1", monthly_users=10)
    evidence = lab.execute("license_audit")
    assert "has to begin with 'Llama'" in evidence.summary
    notice = lab.artifact("license_audit", "NOTICE").read_text()
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License" in notice
    assert "Built with Llama" in notice
    text = lab.artifact("license_audit", "licenses/LICENSE.txt").read_text()
    assert text.startswith("LLAMA 3.1")
    licenses = lab.artifact("license_audit", "LICENSES.md").read_text()
    assert "- [ ] show “Built with Llama”" in licenses
    assert value(evidence, "duties_for_people") == licenses.count("- [ ]") >= 4


def test_words_that_a_licence_demands_name_the_model(audited):
    lab = audited("falcon-llm-license")
    lab.execute("license_audit")
    words = (
        f"{lab.run.config.name} is built using artificial intelligence technology from the "
        "Technology Innovation Institute"
    )
    assert words in lab.artifact("license_audit", "NOTICE").read_text()
    assert f"- [ ] show “{words}”" in lab.artifact("license_audit", "LICENSES.md").read_text()


def test_the_command_line_shows_and_accepts(audited, capsys):
    from tuneline.cli import main

    lab = audited("house")
    lab.execute("license_audit")
    assert main(["licenses", "show", lab.run.uri]) == 0
    assert "there is no rule for this licence" in capsys.readouterr().out
    assert main(["licenses", "accept", "--run", lab.run.uri, "--reason", REASON]) == 0
    evidence = lab.execute("license_audit")
    assert evidence.verdict == "pass"
    assert "(command line)" in evidence.summary
    capsys.readouterr()
    assert main(["licenses", "show", lab.run.uri]) == 0
    assert "no licence of this run waits" in capsys.readouterr().out


def test_no_name_breaks_out_of_the_question(audited):
    lab = audited("house", profile="production")
    lab.execute("license_audit")
    (asked,) = open_of_run(lab.run)
    asked = asked.model_copy(update={"name": "[house](https://elsewhere.example)\n# House"})
    assert r"\[house\](https://elsewhere.example) # House" in question_text(lab.run, [asked])
    other = asked.model_copy(update={"kind": "detector"})
    assert "### Model that finds personal data: " in question_text(lab.run, [other])


def test_an_engine_in_another_image_is_said_to_be_unseen(audited):
    lab = audited()
    config = lab.run.config
    other = config.pods.model_copy(update={"engine_image": "tuneline/other:1"})
    assert license_audit.runs_here(config)
    assert not license_audit.runs_here(config.model_copy(update={"pods": other}))


def ship(lab, tmp_path):
    """Release the version of a run with what the audit left."""
    config = tmp_path / f"{lab.run.run_id}.json"
    config.write_bytes(lab.run.store.get_bytes(lab.run.key("config.json")))
    table = lab.artifact("license_audit", "licenses.csv")
    release(lab, {"licenses.csv": table, "config.json": config})


@pytest.fixture
def released(audited, tmp_path):
    """Release a version with a licence that a person has accepted; what was asked about it."""
    lab = audited("house", profile="production", run_id="night1")
    lab.execute("license_audit")
    asked = open_of_run(lab.run)
    accept(lab)
    lab.execute("license_audit")
    # Only what was released: an answer in a run that went no further counts for that run.
    other = audited("house", profile="production", run_id="night2")
    assert other.execute("license_audit").verdict == "fail"
    ship(lab, tmp_path)
    return asked


def test_the_next_runs_of_a_released_model_are_not_asked_again(released, audited, tmp_path):
    third = audited("house", profile="production", run_id="night3")
    evidence = third.execute("license_audit")
    assert open_of_run(third.run) == []
    assert evidence.verdict == "pass"
    assert f"accepted by carol, for version night1: {REASON}" in evidence.summary
    ship(third, tmp_path)
    fourth = audited("house", profile="production", run_id="night4")
    assert "carol, for version night1:" in fourth.execute("license_audit").summary
    # A rejection ends it.
    accept(fourth, "Reject", released, "")
    assert fourth.execute("license_audit").verdict == "fail"


@pytest.mark.parametrize(
    ("license_id", "changed"),
    [
        pytest.param("house", {"intended_use": "distribution"}, id="another use"),
        pytest.param("house", {"monthly_users": 10**9}, id="more users"),
        pytest.param("barn", {}, id="another licence"),
    ],
)
def test_an_acceptance_ends_with_its_circumstances(released, audited, license_id, changed):
    later = audited(license_id, profile="production", run_id="night3", **changed)
    assert later.execute("license_audit").verdict == "fail"
