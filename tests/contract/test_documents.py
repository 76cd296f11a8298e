"""The JSON documents that others read: their keys and the types of their values."""

import json

from tests.lab.releases import log_release

from tuneline.artifacts.governance import Manifest
from tuneline.governance.release.manifest import write_manifest

# Maps whose keys are data: packages, settings, and, with entries that are all alike, items.
_MAPS, _TABLES = ("packages", "hyperparameters", "basis"), ("evidence", "heads")


def keys(document, path=""):
    """Return the type of each value by its path; the entries of a list are one."""
    last = path.rpartition(".")[2]
    if isinstance(document, dict):
        found = {path: "map"} if last in _MAPS or not document else {}
        for name, value in document.items() if not found else ():
            found |= keys(value, f"{path}.{'*' if last in _TABLES else name}".lstrip("."))
        return found
    if isinstance(document, list):
        found = {}
        for entry in document:
            found |= keys(entry, f"{path}[]")
        return found or {path: "[]"}
    kind = "number" if type(document) in (int, float) else type(document).__name__
    return {path: kind}


def test_documents_of_a_released_run(finished_lab, recorded):
    lab = finished_lab(name="model", profile="production")
    # A release before it.
    manifest = Manifest(name="model", version="before", files=[])
    digest = write_manifest(lab.run.store, "models/model/before", manifest)
    log_release(lab.run.store, "model", "before", digest)
    lab.execute("lineage")
    lab.execute("promote")
    run, model = lab.root / "store/runs/test", lab.root / "store/models/model"
    files = {
        "evidence": run / "governance/lineage/evidence.json",
        "record": run / "governance/promote/record.json",
        "run": run / "run.json",
        "manifest": model / "test/manifest.json",
        "pointer": model / "production.json",
        "release log": model / "test/release.jsonl",
    }
    documents = {}
    for name, path in files.items():
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        documents[name] = {}
        for line in lines:
            documents[name] |= keys(json.loads(line))
    recorded("documents", documents)
