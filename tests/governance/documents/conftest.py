"""A finished run whose evidence looks like that of a real one."""

import json
from pathlib import Path

import pytest
from tests.governance.conftest import HOLDS, MEASURED, SHIPPED

from tuneline.artifacts.releases import find_version
from tuneline.evidence import measure
from tuneline.governance.documents.facts import Facts

LICENSES = """kind,name,license,read_from,allowed,rule
base_model,the base,Apache-2.0,README.md: license,True,Apache-2.0
dataset,rows.jsonl,CC-BY-4.0,the configuration,True,CC-BY-4.0
package,httpx 0.28.1,BSD-3-Clause,License-Expression,True,BSD
package,Typing_Extensions 4.16.0,MIT OR Apache-2.0,License-Expression,True,MIT
package,unclear 1.0+cpu,NOASSERTION,no licence in the metadata,,NOASSERTION
"""
DATASET = {
    "schema": "tuneline/dataset/1",
    "name": "model",
    "version": "d" * 64,
    "rows": 106,
    "splits": {"train": 80, "validation": 10, "holdout": 16},
    "sources": [
        {
            "name": "/data/rows|1.jsonl",
            "address": "hf://datasets/team/rows@abc",
            "origin": None,
            "sha256": "a" * 64,
            "license": "CC-BY-4.0",
            "records": 120,
            "records_kept": 106,
        }
    ],
    "removed": [{"item": "deduplication", "rows": 14, "reasons": {"exact_duplicate": 14}}],
}
HOLDOUT = (
    measure("metric", "intent accuracy", ""),
    measure("tuned_metric", 0.9167, "share"),
    measure("tuned_metric_lower", 0.8045, "share"),
    measure("tuned_metric_upper", 0.9671, "share"),
    measure("base_metric", 0.3333, "share"),
    measure("holdout_rows", 16, "rows"),
)
GAIN = measure("gain_lower", 0.4169, "share", ">", 0.0)
NO_GAIN = measure("gain_lower", -0.0731, "share", ">", 0.0)


@pytest.fixture
def documented(finished_lab):
    """Make a run with the evidence above and what the test changes, then run lineage."""

    def make(change=None, *, execute=True, **settings):
        lab = finished_lab(**{"name": "model", **settings})
        lab.leave("holdout_performance", {}, [*HOLDOUT, GAIN, MEASURED])
        lab.leave("license_audit", {"licenses.csv": LICENSES}, [HOLDS])
        files = {**SHIPPED["final_audit"], "dataset.json": json.dumps(DATASET)}
        lab.leave("final_audit", files, [HOLDS])
        if change:
            change(lab)
        if execute:
            lab.execute("lineage")
        return lab

    return make


def folder(lab) -> Path:
    return lab.root / "store/models/model/test"


def facts(lab) -> Facts:
    release = find_version(lab.run.store, "model", "test")
    assert release is not None
    return Facts(release)
