"""Tell the OpenLineage provider of Airflow, where it is installed, what a step read and left.

The provider asks the operator when its task has ended, and sends the answer to the server that its
transport names (`AIRFLOW__OPENLINEAGE__TRANSPORT`). Files are datasets whose version is their
SHA-256, and measurements that decide are test results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneline.artifacts.governance import MANIFEST_REF
from tuneline.catalogue import Severity
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, FileRef, Record
from tuneline.run import Run

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


def step_lineage(run_uri: str, step: str) -> OperatorLineage | None:
    """Return inputs, outputs and test results of a step; None if it left no evidence."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.test_run import TestRunFacet

    try:
        run = Run.open(run_uri)
        entry = run.find_entry(step)
        model = MANIFEST_REF.find(run) if step in ("lineage", "promote") else None
    except TunelineError:
        return None
    if entry is None:
        return None
    outputs = [*entry.artifacts]
    if model is not None:
        outputs.append(FileRef(name="model", uri=model.uri, sha256=model.sha256, bytes=0))
    return OperatorLineage(
        inputs=[_dataset(ref) for ref in entry.inputs],
        outputs=[_dataset(ref, output=True) for ref in outputs],
        run_facets={"test": TestRunFacet(tests=_tests(entry))},
    )


def _dataset(ref: FileRef, *, output: bool = False) -> Any:
    """Return a file by OpenLineage's naming: its server or `file` as namespace, then its path."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.output_statistics_output_dataset import (
        OutputStatisticsOutputDatasetFacet,
    )

    place = urlsplit(ref.uri)
    local = place.scheme in ("", "file")
    names = {
        "namespace": "file" if local else f"{place.scheme}://{place.netloc}",
        "name": place.path if local else place.path.lstrip("/") or ref.name,
        "facets": {"version": DatasetVersionDatasetFacet(datasetVersion=ref.sha256)},
    }
    if not output:
        return InputDataset(**names)
    size = OutputStatisticsOutputDatasetFacet(rowCount=ref.rows, size=ref.bytes or None)
    return OutputDataset(**names, outputFacets={"outputStatistics": size})


def _tests(entry: Evidence | Record) -> list[Any]:
    from openlineage.client.generated.test_run import TestExecution

    critical = isinstance(entry, Evidence) and entry.severity == Severity.CRITICAL
    return [
        TestExecution(
            name=measured.name,
            status="pass" if measured.ok else "fail",
            severity="error" if critical and measured.on_breach == "fail" else "warn",
            expected=f"{measured.rule} {measured.limit} {measured.unit}",
            actual=str(measured.value),
        )
        for measured in entry.measurements
        if measured.rule is not None
    ]
