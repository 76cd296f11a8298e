"""The bill of materials fits the schema of CycloneDX 1.7 and holds what the release holds."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.governance.conftest import BROKEN, MEASURED, WEIGHTS_SHA256
from tests.governance.documents.conftest import folder


def bom(lab):
    return json.loads((folder(lab) / "bom.cdx.json").read_text())


def fault(document):
    """Return what the schema has against a document, None if nothing."""
    return JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(document))


def test_it_fits_the_schema(documented):
    lab = documented(governance={"intended_use": "internal"})
    found = bom(lab)
    assert found["specVersion"] == "1.7"
    assert fault(found) is None
    model = found["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "model")
    assert model["hashes"] == [{"alg": "SHA-256", "content": WEIGHTS_SHA256}]
    measured = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert measured == [
        {
            "type": "intent accuracy",
            "value": "0.9167",
            "slice": "hold-out",
            "confidenceInterval": {"lowerBound": "0.8045", "upperBound": "0.9671"},
        }
    ]
    for spoil in (
        lambda found: found["metadata"]["component"].update(type="model"),
        lambda found: found["metadata"]["component"]["modelCard"].update(metrics=[]),
        lambda found: found["components"][0].pop("name"),
        lambda found: found.update(serialNumber="1"),
    ):
        spoiled = bom(lab)
        spoil(spoiled)
        assert fault(spoiled) is not None


def test_packages_and_licences_are_those_of_the_audit(documented):
    found = {component["bom-ref"]: component for component in bom(documented())["components"]}
    packages = {ref: one for ref, one in found.items() if one["type"] == "library"}
    assert set(packages) == {
        "pkg:pypi/httpx@0.28.1",
        "pkg:pypi/typing-extensions@4.16.0",
        "pkg:pypi/unclear@1.0%2Bcpu",
    }
    assert packages["pkg:pypi/httpx@0.28.1"]["licenses"][0]["license"]["id"] == "BSD-3-Clause"
    both = packages["pkg:pypi/typing-extensions@4.16.0"]["licenses"][0]
    assert both["expression"] == "MIT OR Apache-2.0"
    assert "licenses" not in packages["pkg:pypi/unclear@1.0%2Bcpu"]
    [source] = found["dataset"]["components"]
    assert source["hashes"][0]["content"] == "a" * 64
    assert source["licenses"][0]["license"]["id"] == "CC-BY-4.0"
    # The random base has no licence, and none is made up.
    assert "licenses" not in found["base-model"]


def test_a_failed_item_is_a_limitation_and_claims_no_number(documented):
    def change(lab):
        lab.leave("holdout_performance", {}, [BROKEN])
        lab.leave("fallback", {}, [BROKEN, MEASURED])

    card = bom(documented(change))["metadata"]["component"]["modelCard"]
    assert "quantitativeAnalysis" not in card
    limits = card["considerations"]["technicalLimitations"]
    assert [line.partition(" ")[0] for line in limits] == ["holdout_performance", "fallback"]
