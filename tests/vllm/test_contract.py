"""The contract of every engine, answered by a real vLLM."""

import pytest
from tests.serving.engines.test_contract import *  # noqa: F403
from tests.serving.engines.test_contract import Case, spoil
from tests.vllm.reference import request


@pytest.fixture(scope="module")
def case(tiny, tmp_path_factory):
    spoiled = spoil(tiny.base, tmp_path_factory.mktemp("spoiled") / "model")
    return Case("vllm", request(tiny.base, parallel=2), tiny.base, spoiled)
