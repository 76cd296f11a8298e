"""The stand-in for NVIDIA's image, and an engine of the tiny model that it has built."""

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
def build(image):
    """Build an engine for two requests of 512 tokens, whose logits can be read."""

    def make(checkpoint, folder):
        sizes = {"max_batch_size": 2, "max_total_tokens": 512}
        request = BuildRequest(checkpoint, folder, **sizes, context_logits=True)
        assert get_engine("tensorrt_llm").build(request).built
        return folder

    return make


@pytest.fixture(scope="module")
def built(build, tiny_dir, tmp_path_factory):
    return build(tiny_dir, tmp_path_factory.mktemp("built") / "model")


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    """A machine without NVIDIA's image: an empty folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    installed_versions.cache_clear()
    yield tmp_path / "bin"
    installed_versions.cache_clear()
