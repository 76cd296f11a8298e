import json

from tuneline.deployment import build_engine, engine_optimization
from tuneline.deployment.engine_optimization import Throughput, judge
from tuneline.serving.engines.base import Compatibility


def execute(lab):
    lab.execute("build_engine", build_engine.run)
    evidence = lab.execute("engine_optimization", engine_optimization.run)
    return evidence, {m.name: m for m in evidence.measurements}


def says(engine, compatible):
    return Compatibility(engine, compatible, "because", "a table", live=False)


FAST = Throughput("llama_cpp", 20.0, 60.0, 4, 0)


def test_measured_and_built_passes(exported_lab):
    lab = exported_lab()
    evidence, found = execute(lab)
    assert evidence.verdict == "pass", [m for m in evidence.measurements if m.ok is False]
    assert found["tokens_per_s_batched"].value > 0
    document = json.loads(
        lab.context("prepare_review").input("engine_optimization", "engines.json").read_text()
    )
    engines = {entry["engine"]: entry for entry in document["engines"]}
    assert {"vllm", "sglang", "tgi", "tensorrt_llm", "llama_cpp"} <= set(engines)
    assert all(entry["source"] and entry["reason"] for entry in engines.values())
    assert document["shipping_engine"]["identity"]["engine"] == "llama_cpp"


def test_an_engine_that_is_not_built_fails(exported_lab):
    evidence, found = execute(exported_lab(deployment={"engine": "tensorrt_llm"}))
    assert evidence.verdict == "fail"
    assert found["shipping_engine_built"].ok is False
    assert "needs a GPU pod" in evidence.summary


def broken(*arguments):
    return {(m.name, m.on_breach) for m in judge(*arguments) if m.ok is False}


def test_compatibility_alone_is_a_warning():
    table = [says("llama_cpp", True), says("vllm", True)]
    assert broken(table, FAST, "llama_cpp", True) == set()
    assert broken(table, None, "llama_cpp", True) == {("engines_measured", "warn")}


def test_an_engine_that_cannot_serve_the_model_fails():
    table = [says("llama_cpp", True), says("vllm", False)]
    assert broken(table, FAST, "vllm", True) == {("shipping_engine_compatible", "fail")}


def test_failed_requests_are_no_measurement():
    table = [says("llama_cpp", True)]
    slow = Throughput("llama_cpp", 0.0, 0.0, 4, 3)
    found = broken(table, slow, "llama_cpp", True)
    assert found == {("engines_measured", "warn"), ("failed_requests", "fail")}
    assert slow.speedup == 0.0
