"""A real engine with a tiny random model, and the stand-in for NVIDIA's image with a built one."""

import pytest
from tests.lab.engines import llama_server
from tests.lab.tiny_models import make_model
from tests.lab.trtllm import TrtllmImage

from tuneline.gguf.export import export_gguf
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.engine import BuildRequest
from tuneline.serving.engines.tensorrt_llm.identity import installed_versions


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "hf"
    # Long enough that a generation can be caught while it runs.
    make_model(directory, max_position_embeddings=8192)
    return directory


@pytest.fixture(scope="session")
def tiny_gguf(tiny_dir):
    path = tiny_dir.parent / "tiny.gguf"
    export_gguf(tiny_dir, path)
    return path


@pytest.fixture(scope="module")
def engine(tiny_gguf):
    with llama_server(tiny_gguf, parallel=4, ctx=512, alias="tiny", threads=1) as server:
        yield server


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
