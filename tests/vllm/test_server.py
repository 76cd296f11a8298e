"""A running vLLM: its answers, its adapter, its memory."""

from tests.vllm.reference import generated, prompts, request, served, share_equal

from tuneline.serving.engines import get_engine
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.vllm.engine import VllmServer

ROWS = 100


def test_it_is_the_engine_of_its_name(tiny):
    engine = get_engine("vllm")
    assert engine.missing() is None
    assert engine.version().startswith("vllm 0.")
    assert not engine.on_gpu()
    assert isinstance(engine.server(request(tiny.base)), VllmServer)


def test_it_is_ready_once_it_has_generated_a_token(server):
    assert server.load_seconds > 0
    assert engine_probe.ready(server.base_url, 10.0, "tiny").ok
    assert engine_probe.ready(server.base_url, 10.0, "tuned").ok
    other = engine_probe.ready(server.base_url, 10.0, "other")
    assert other.reason == "it serves tiny, tuned, not other"


def test_the_base_answers_as_in_transformers(server, tiny):
    asked = prompts(ROWS)
    assert share_equal(served(server, asked), generated(tiny.base, asked)) >= 0.99


def test_the_adapter_answers_as_the_merged_model(server, tiny):
    asked = prompts(ROWS)
    adapted = served(server, asked, extra=server.with_adapter("tuned"))
    assert share_equal(adapted, generated(tiny.merged, asked)) >= 0.99
    # The adapter knows the task, the base does not.
    assert share_equal(adapted, served(server, asked)) < 0.5


def test_an_answer_does_not_depend_on_what_is_answered_beside_it(server):
    asked = prompts(40)
    alone = served(server, asked, concurrency=1)
    for _ in range(2):
        assert served(server, asked, concurrency=4) == alone


def test_memory_is_that_of_all_its_processes(server):
    import psutil

    own = psutil.Process(server.pid).memory_info().rss
    # The launcher is small; the server, the engine and the worker each import torch.
    assert server.memory_bytes() > own + 500e6
