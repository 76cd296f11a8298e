"""A real vLLM on the CPU; without it, the tests of this folder are skipped."""

from pathlib import Path

import pytest
from tests.lab.extras import need


def pytest_collection_modifyitems(items):
    need(items, Path(__file__).parent, "vllm", "vLLM is not here; run `make test-vllm`")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny base, its adapter and the merged model, of a size that vLLM has CPU kernels for."""
    from tests.lab.tiny_task import TinyModels

    return TinyModels(tmp_path_factory.mktemp("tiny"), heads=2)


@pytest.fixture(scope="session")
def server(tiny):
    """The tiny base with its adapter behind a server of four slots."""
    from tests.vllm.reference import request

    from tuneline.serving.engines.vllm.engine import VllmServer

    asked = request(tiny.base, parallel=4, adapters={"tuned": tiny.adapter})
    with VllmServer(asked) as running:
        yield running
