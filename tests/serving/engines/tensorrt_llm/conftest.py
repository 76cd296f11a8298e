"""An engine of the tiny model, built once by the stand-in for NVIDIA's image."""

import pytest
from tests.lab.trtllm import TrtllmImage

from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest
from tuneline.serving.engines.tensorrt_llm.identity import installed_versions


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield TrtllmImage(tmp_path_factory.mktemp("trtllm"), patch)
    installed_versions.cache_clear()


@pytest.fixture(scope="module")
def built(image, tiny_dir, tmp_path_factory):
    """The served folder, for two requests of 512 tokens."""
    folder = tmp_path_factory.mktemp("built") / "model"
    request = BuildRequest(
        tiny_dir, folder, max_batch_size=2, max_input_tokens=511, max_total_tokens=512
    )
    assert get_engine("tensorrt_llm").build(request).built
    return folder


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    """A machine without NVIDIA's image: an empty folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    installed_versions.cache_clear()
    yield tmp_path / "bin"
    installed_versions.cache_clear()


@pytest.fixture
def other_gpu(image, monkeypatch):
    """Exchange the GPU for the rest of a test."""

    def change(name, sm):
        monkeypatch.setenv("TRTLLM_LAB_GPU", name)
        monkeypatch.setenv("TRTLLM_LAB_SM", sm)

    return change
