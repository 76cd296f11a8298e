"""OpenLineage gets a step's inputs and outputs by hash, and its measurements as tests."""

import pytest
from tests.lab.runs import Lab

from tuneline.airflow.open_lineage import step_lineage
from tuneline.airflow.steps import pod_of
from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.governance import MANIFEST_REF, ManifestRef
from tuneline.catalogue import get_step
from tuneline.evidence import measure

pytest.importorskip("airflow.providers.openlineage", reason="requirements/openlineage.txt")

ROWS = Artifact("deduplication", "rows.parquet")


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path, {})
    lab.leave("deduplication", {ROWS.name: "rows"})

    def work(ctx):
        ROWS.fetch(ctx)
        (ctx.out / "audit.parquet").write_text("audit")
        found = [
            measure("too_long", 3, "rows", "<=", 0),
            measure("share", 0.2, "share", "<=", 0.1, on_breach="warn"),
            measure("tokens", 7, "tokens"),
        ]
        return ctx.conclude("measured", found, rows={"audit.parquet": 12})

    lab.execute("token_length_audit", work)
    return lab


class Instance:
    def __init__(self, run_uri):
        self.run_uri = run_uri

    def xcom_pull(self, task_ids):
        return {"prepare_run": self.run_uri}[task_ids]


def test_the_operator_answers_what_the_provider_asks(lab):
    pod = pod_of(get_step("token_length_audit"))
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    found = DefaultExtractor(pod).extract_on_complete(Instance(lab.run.uri))
    (read,), (left,) = found.inputs, found.outputs
    evidence = lab.run.entry("token_length_audit")
    assert (read.namespace, read.name) == ("file", f"{lab.root}/store/{ROWS.key(lab.run)}")
    assert read.facets["version"].datasetVersion == evidence.inputs[0].sha256
    assert left.facets["version"].datasetVersion == evidence.artifacts[0].sha256
    assert left.outputFacets["outputStatistics"].rowCount == 12
    tests = {t.name: (t.status, t.severity, t.actual) for t in found.run_facets["test"].tests}
    assert tests == {"too_long": ("fail", "error", "3"), "share": ("fail", "warn", "0.2")}


def test_lineage_leaves_the_model(lab):
    def work(ctx):
        MANIFEST_REF.write(
            ctx, ManifestRef(uri="s3://b/models/m/1/manifest.json", sha256="e" * 64, version="1")
        )
        return ctx.conclude("stated", [measure("m", 0, "rows", "==", 0)])

    lab.execute("lineage", work)
    model = step_lineage(lab.run.uri, "lineage").outputs[-1]
    assert (model.namespace, model.name) == ("s3://b", "models/m/1/manifest.json")
    assert model.facets["version"].datasetVersion == "e" * 64


def test_a_step_without_evidence_has_none(lab):
    assert step_lineage(lab.run.uri, "train") is None
    assert step_lineage("file:///nowhere/runs/x", "train") is None
