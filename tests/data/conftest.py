"""Fixtures of the data phase: a base model, runs over small datasets, one over the sample."""

import pytest
from tests.lab.data_runs import DataLab, make_base
from tests.lab.wheels import link_usual_wheel


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
