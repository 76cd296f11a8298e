"""The release that a run would replace, and those before it."""

import pytest
from tests.lab.nights import release
from tests.lab.runs import Lab
from tests.lab.tiny_models import make_model

from tuneline.artifacts.releases import ancestry, find_version, released
from tuneline.errors import UserError
from tuneline.store import CorruptObject


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_model(folder)
    return folder


@pytest.fixture
def night(tmp_path, base):
    return lambda run_id: Lab(tmp_path, {"base_model": str(base)}, run_id)


def test_nothing_is_released_at_first(night):
    assert released(night("a").run) is None


def test_the_released_version_and_those_before_it(night):
    for version, previous in (("a", None), ("b", "a"), ("c", "b")):
        release(night(version), {}, previous=previous)
    found = released(night("d").run)
    assert [step.version for step in ancestry(found)] == ["c", "b", "a"]
    assert found.uri.endswith("/models/support-intents/c/manifest.json")


def test_a_run_that_is_released_already_is_given_the_release_before_it(night):
    release(night("a"), {})
    assert released(night("a").run) is None
    release(night("b"), {}, previous="a")
    assert released(night("b").run).version == "a"


def test_a_line_ends_where_a_manifest_is_gone_or_comes_again(night):
    release(night("b"), {}, previous="gone")
    assert [step.version for step in ancestry(released(night("x").run))] == ["b"]
    release(night("c"), {}, previous="c")
    assert [step.version for step in ancestry(released(night("x").run))] == ["c"]


def test_another_manifest_than_the_released_one_is_refused(night):
    lab = night("a")
    release(lab, {})
    key = "models/support-intents/a/manifest.json"
    lab.run.store.put_bytes(key, lab.run.store.get_bytes(key) + b" ")
    with pytest.raises(CorruptObject, match="it was released with"):
        released(night("b").run)
    lab.run.store.put_bytes(key, b"{}")
    with pytest.raises(CorruptObject, match=r"manifest\.json can't be read: files: Field required"):
        find_version(lab.run.store, "support-intents", "a")


def test_a_pointer_to_nothing_is_refused(night):
    lab = night("a")
    release(lab, {})
    lab.run.store.delete_prefix("models/support-intents/a")
    with pytest.raises(UserError, match="names version a, which has no"):
        released(night("b").run)


def test_a_file_that_is_missing_or_changed_is_refused(night, tmp_path):
    lab = night("a")
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    release(lab, {"model.gguf": path})
    found = released(night("b").run)
    ref = found.find("model.gguf")
    assert found.fetch(ref, tmp_path / "there").read_bytes() == b"weights"
    assert found.find("other.gguf") is None
    lab.run.store.put_bytes("models/support-intents/a/model.gguf", b"others")
    with pytest.raises(CorruptObject):
        found.fetch(ref, tmp_path / "changed")
    (tmp_path / "store/models/support-intents/a/model.gguf").unlink()
    with pytest.raises(UserError, match="is incomplete"):
        found.fetch(ref, tmp_path / "gone")
