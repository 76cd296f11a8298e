import json

from tests.lab.runs import broken, values

from tuneline.deployment import build_engine, engine_optimization
from tuneline.deployment.engine_optimization import Throughput, judge
from tuneline.serving.engines.engine import Compatibility


def execute(lab):
    lab.execute("build_engine", build_engine.run)
    return lab.execute("engine_optimization", engine_optimization.run)


def says(engine, compatible):
    return Compatibility(engine, compatible, "because", "a table", live=False)


FAST = Throughput("llama_cpp", 20.0, 60.0, 4, 0)


def test_measured_and_built_passes(exported_lab):
    lab = exported_lab()
    evidence = execute(lab)
    assert evidence.verdict == "pass", broken(evidence)
    assert values(evidence)["tokens_per_s_batched"] > 0
    document = lab.document("engine_optimization", "engines.json")
    engines = {entry["engine"]: entry for entry in document["engines"]}
    assert {"vllm", "sglang", "tgi", "tensorrt_llm", "llama_cpp"} <= set(engines)
    assert all(entry["source"] and entry["reason"] for entry in engines.values())
    assert document["shipping_engine"]["identity"]["engine"] == "llama_cpp"


def test_an_engine_that_is_not_built_fails(exported_lab):
    lab = exported_lab(deployment={"engine": "tensorrt_llm"})
    choice = {"variant": "f16", "engine": "tensorrt_llm", "sha256": "0" * 64}
    lab.leave("production_quantization", {"choice.json": json.dumps(choice)})
    evidence = execute(lab)
    assert evidence.verdict == "fail"
    assert "shipping_engine_built" in broken(evidence)
    assert "needs a GPU pod" in evidence.summary


def broken_rules(*arguments):
    return {(m.name, m.on_breach) for m in judge(*arguments) if m.ok is False}


def test_compatibility_alone_is_no_engine():
    table = [says("llama_cpp", True), says("vllm", True)]
    assert broken_rules(table, FAST, "llama_cpp", True) == set()
    assert broken_rules(table, None, "llama_cpp", True) == {("engines_measured", "fail")}


def test_an_engine_that_cannot_serve_the_model_fails():
    table = [says("llama_cpp", True), says("vllm", False)]
    assert broken_rules(table, FAST, "vllm", True) == {("shipping_engine_compatible", "fail")}


def test_failed_requests_are_no_measurement():
    table = [says("llama_cpp", True)]
    slow = Throughput("llama_cpp", 0.0, 0.0, 4, 3)
    found = broken_rules(table, slow, "llama_cpp", True)
    assert found == {("engines_measured", "fail"), ("failed_requests", "fail")}
    assert slow.speedup == 0.0
