from tuneline.artifacts.deployment import EngineIdentity
from tuneline.machine.cores import available_cores
from tuneline.serving.release.limits import ServedLimits, largest, served_limits, threads_here


def test_what_a_server_was_started_with_counts_and_not_what_was_built():
    built = {"max_batch_size": 8, "max_total_tokens": 4096}
    started = ServedLimits(2, 512, 1)
    stated = EngineIdentity(engine="tensorrt_llm", limits=built, served=started.as_stated())
    assert served_limits(stated) == started
    assert served_limits(EngineIdentity(engine="vllm", limits=built)) == ServedLimits(8, 4096)
    assert served_limits(EngineIdentity(engine="vllm")) == ServedLimits(2, 2048)


def test_several_releases_on_one_engine_get_the_largest_of_each():
    limits = [ServedLimits(2, 1024, 3), ServedLimits(4, 512), ServedLimits(1, 2048, 1)]
    assert largest(limits) == ServedLimits(4, 2048, 3)
    assert largest(limits[1:2]) == ServedLimits(4, 512, None)


def test_threads_are_the_measured_ones_within_this_machine(monkeypatch):
    monkeypatch.delenv("TUNELINE_THREADS", raising=False)
    assert threads_here(1) == 1
    assert threads_here(10_000) == available_cores()
    assert threads_here(None) is None
    monkeypatch.setenv("TUNELINE_THREADS", "3")
    assert threads_here(1) == 3
