"""A real engine with a tiny random model for the tests of this folder."""

import pytest
from tests.lab.engines import llama_server
from tests.lab.tiny_models import make_model

from tuneline.gguf.export import export_gguf


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
