"""A machine without the stand-in for NVIDIA's image."""

import pytest

from tuneline.serving.engines.tensorrt_llm.identity import installed_versions


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    """A machine without NVIDIA's image: an empty folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    installed_versions.cache_clear()
    yield tmp_path / "bin"
    installed_versions.cache_clear()
