"""Fixtures of the data phase: a base model, runs over small datasets, one over the sample."""

import json

import pytest
from benchmarks.workloads.support_chat import PLANTED
from tests.lab.data_runs import DataLab, make_base
from tests.lab.wheels import link_usual_wheel

from tuneline.data.sample import SUPPORT


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """A base model's directory with a small but real tokenizer."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Hashes of the models of these tests stay out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    link_usual_wheel(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_CACHE", str(cache))
        yield


@pytest.fixture
def data_lab(tmp_path, base_dir):
    """Makes a run over rows: `data_lab(rows, **settings_of_the_data_section)`."""

    def make(rows, **data):
        root = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        return DataLab(root, base_dir, rows, **data)

    return make


@pytest.fixture(scope="session")
def sample_lab(tmp_path_factory, base_dir):
    """The whole data phase over the sample, names included, and what was planted in it."""
    lab = DataLab(
        tmp_path_factory.mktemp("sample"),
        base_dir,
        SUPPORT.read_bytes().splitlines(),
        pii_profile=["gdpr"],
        pii_ner=True,
        max_tokens=1024,
    )
    lab.upto("distribution_balancing")
    lab.step("final_audit")
    lab.planted = json.loads(PLANTED.read_bytes())["planted"]
    return lab
