"""The licence audit: clean licences pass, each planted licence is caught."""

from email.message import Message

import pytest

from tuneline.evidence import conclude
from tuneline.governance.license_audit import (
    audit,
    judge_all,
    package_license,
    shipped_packages,
)
from tuneline.models.license_rules import judge, normalise


class Package:
    """A distribution with the metadata of a test."""

    version = "1.0"

    def __init__(self, **fields):
        self.metadata = Message()
        self.metadata["Name"] = "thing"
        for name, value in fields.items():
            for entry in value if isinstance(value, list) else [value]:
                self.metadata[name.replace("_", "-")] = entry


@pytest.mark.parametrize(
    ("written", "spdx"),
    [
        ("Apache 2.0", "Apache-2.0"),
        ("MIT License", "MIT"),
        ("mit", "MIT"),
        ("LicenseRef-llama3.1", "llama3.1"),
        ("", "NOASSERTION"),
        (None, "NOASSERTION"),
        ("UNKNOWN", "NOASSERTION"),
        ("My own licence", "My own licence"),
    ],
)
def test_names_are_normalised(written, spdx):
    assert normalise(written) == spdx


@pytest.mark.parametrize(
    ("license_id", "use", "allowed"),
    [
        ("Apache-2.0", "distribution", True),
        ("CC-BY-NC-4.0", "internal", True),
        ("CC-BY-NC-4.0", "commercial", False),
        ("GPL-3.0-only", "commercial", True),
        ("GPL-3.0-only", "distribution", False),
        ("MIT OR GPL-3.0-only", "distribution", True),
        ("MIT AND GPL-3.0-only", "distribution", False),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", "distribution", True),
        ("Apache-2.0 WITH LLVM-exception", "distribution", True),
        ("NOASSERTION", "commercial", False),
        ("My own licence", "commercial", None),
        ("MIT AND My own licence", "commercial", None),
    ],
)
def test_rules(license_id, use, allowed):
    assert judge(license_id, use)[0] is allowed


@pytest.mark.parametrize(
    ("package", "license_id"),
    [
        (Package(License_Expression="MIT"), "MIT"),
        (Package(License="BSD 3-Clause\n\nCopyright …"), "BSD-3-Clause"),
        (
            Package(
                License="Dual License",
                Classifier=[
                    "License :: OSI Approved :: BSD License",
                    "License :: OSI Approved :: Apache Software License",
                ],
            ),
            "BSD AND Apache-2.0",
        ),
        (Package(), "NOASSERTION"),
    ],
)
def test_package_metadata_is_read_in_order(package, license_id):
    assert package_license(package)[0] == license_id


def test_what_ships_here_is_allowed_for_distribution():
    findings = audit(
        ("m", "Apache-2.0", "x"),
        [("d", "MIT"), ("e", "CC-BY-4.0")],
        shipped_packages(),
        "distribution",
    )
    assert len(findings) > 15
    assert [f for f in findings if f.allowed is not True] == []


def test_planted_licences_are_found():
    findings = audit(
        ("m", "CC-BY-NC-4.0", "x"), [("d", None)], [Package(License="AGPL")], "distribution"
    )
    assert [f.allowed for f in findings] == [False, False, False]
    assert "non-commercial" in findings[0].rule
    two = audit(("m", "MIT", "x"), [("d", "MIT"), ("e", "CC-BY-NC-4.0")], [], "commercial")
    assert [(f.name, f.allowed) for f in two] == [("m", True), ("d", True), ("e", False)]


@pytest.mark.parametrize(
    ("package", "profile", "verdict"),
    [
        ("MIT", "laptop", "warn"),
        ("MIT", "production", "fail"),
        ("AGPL", "laptop", "fail"),
    ],
)
def test_undeclared_data_warns_on_a_laptop_only(package, profile, verdict):
    packages = [Package(License=package)]
    findings = audit(("m", "MIT", "x"), [("d", None)], packages, "distribution")
    assert conclude(judge_all(findings, profile)) == verdict


@pytest.mark.model
@pytest.mark.parametrize(
    ("data_license", "use", "verdict"),
    [
        ("Apache-2.0", "commercial", "pass"),
        (None, "commercial", "warn"),
        ("CC-BY-NC-4.0", "commercial", "fail"),
        ("CC-BY-NC-4.0", "internal", "pass"),
    ],
)
def test_verdicts(make_lab, data_license, use, verdict):
    from tuneline.governance import license_audit

    lab = make_lab({"data": {"license": data_license}, "governance": {"intended_use": use}})
    assert lab.execute("license_audit", license_audit.run).verdict == verdict
