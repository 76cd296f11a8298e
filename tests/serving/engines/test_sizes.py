from tuneline.artifacts.deployment import EngineIdentity
from tuneline.machine.cores import available_cores
from tuneline.serving.engines.server import ServedSizes, largest, served_sizes, threads_here


def test_what_a_server_was_started_with_counts_and_not_what_was_built():
    built = {"max_batch_size": 8, "max_total_tokens": 4096}
    started = ServedSizes(2, 512, 1)
    stated = EngineIdentity(engine="tensorrt_llm", limits=built, served=started.as_stated())
    assert served_sizes(stated) == started
    assert served_sizes(EngineIdentity(engine="vllm", limits=built)) == ServedSizes(8, 4096)
    assert served_sizes(EngineIdentity(engine="vllm")) == ServedSizes(2, 2048)


def test_several_releases_on_one_engine_get_the_largest_of_each():
    limits = [ServedSizes(2, 1024, 3), ServedSizes(4, 512), ServedSizes(1, 2048, 1)]
    assert largest(limits) == ServedSizes(4, 2048, 3)
    assert largest(limits[1:2]) == ServedSizes(4, 512, None)


def test_threads_are_the_measured_ones_within_this_machine(monkeypatch):
    monkeypatch.delenv("TUNELINE_THREADS", raising=False)
    assert threads_here(1) == 1
    assert threads_here(10_000) == available_cores()
    assert threads_here(None) is None
    monkeypatch.setenv("TUNELINE_THREADS", "3")
    assert threads_here(1) == 3
