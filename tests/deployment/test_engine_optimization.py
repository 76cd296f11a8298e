import pytest
from tests.lab.runs import broken, values

from tuneline.deployment.engine_optimization import Throughput, judge
from tuneline.serving.engines.engine import Compatibility


def execute(lab):
    lab.execute("build_engine")
    return lab.execute("engine_optimization")


FAST, SILENT = Throughput("llama_cpp", 20.0, 60.0, 4, 0), {"engines_measured", "failed_requests"}
LOSES = Throughput("llama_cpp", 92.0, 74.0, 4, 0)


def test_measured_and_built_passes(exported_lab):
    lab = exported_lab()
    evidence = execute(lab)
    # Another process may take a core from the four slots.
    assert broken(evidence) <= {"batching_speedup"}
    assert values(evidence)["tokens_per_s_batched"] > 0
    document = lab.document("engine_optimization", "engines.json")
    engines = {entry["engine"]: entry for entry in document["engines"]}
    assert {"vllm", "sglang", "tgi", "tensorrt_llm", "llama_cpp"} <= set(engines)
    assert all(entry["source"] and entry["reason"] for entry in engines.values())
    assert document["shipping_engine"]["identity"]["engine"] == "llama_cpp"


@pytest.mark.parametrize(
    ("vllm", "measured", "engine", "found"),
    [
        (True, FAST, "llama_cpp", set()),
        # Compatibility alone is not enough, and failed requests are no measurement.
        (True, None, "llama_cpp", {"engines_measured"}),
        (False, FAST, "vllm", {"shipping_engine_compatible"}),
        (True, Throughput("llama_cpp", 0, 0, 4, 3), "llama_cpp", {*SILENT, "batching_speedup"}),
        (True, LOSES, "llama_cpp", {"batching_speedup"}),
    ],
)
def test_each_fault_turns_the_verdict(vllm, measured, engine, found):
    table = [
        Compatibility(name, able, "because", "a table", live=False)
        for name, able in (("llama_cpp", True), ("vllm", vllm))
    ]
    broken_rules = {
        (m.name, m.on_breach) for m in judge(table, measured, engine, True) if m.ok is False
    }
    warns = {"batching_speedup"}
    assert broken_rules == {(name, "warn" if name in warns else "fail") for name in found}
