import json

import pytest
from tests.lab.runs import values

from tuneline.artifacts.deployment import ENGINE_IDENTITY, NOT_BUILT, BuildReport
from tuneline.deployment import build_engine
from tuneline.errors import TunelineError
from tuneline.store import sha256_file


def names(record):
    return {ref.name for ref in record.artifacts}


def test_llama_cpp_is_identified_after_it_answered(exported_lab, tiny_models):
    lab = exported_lab(deployment={"parallel": 2, "context_tokens": 256})
    record = lab.execute("build_engine", build_engine.run)
    assert names(record) == {"engine/engine.json", "identity.json"}
    identity = ENGINE_IDENTITY.find(lab.run)
    assert identity.files == {"model.gguf": sha256_file(tiny_models.candidate_gguf)}
    assert identity.limits == {"max_batch_size": 2, "max_total_tokens": 256}
    assert identity.version.startswith("xllamacpp ")
    assert {"variant", "load_seconds", "memory_bytes", "os", "arch", "gpus"} <= set(
        identity.model_dump()
    )
    engine = lab.document("build_engine", "engine/engine.json")
    assert json.loads(engine["answered"])["reply"] == "We look at it."


def test_a_file_that_does_not_load_is_not_identified(exported_lab, tiny_models, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_models.candidate_gguf.read_bytes()[:5000])
    lab = exported_lab()
    lab.leave_shipped(broken)
    with pytest.raises(TunelineError):
        lab.execute("build_engine", build_engine.run)


def test_tensorrt_without_a_gpu_is_not_built_and_says_so(exported_lab):
    lab = exported_lab(deployment={"engine": "tensorrt_llm"})
    record = lab.execute("build_engine", build_engine.run)
    assert names(record) == {"not_built.json"}
    assert "needs a GPU pod" in record.summary
    report = NOT_BUILT.find(lab.run)
    assert [command[0] for command in report.commands] == ["python", "trtllm-build"]
    assert values(record)["built"] is False


def test_limits_that_a_built_engine_states_are_kept(exported_lab, monkeypatch):
    stated = {"engine": "tensorrt_llm", "version": "1", "limits": {"max_batch_size": 3}}
    report = BuildReport(engine="tensorrt_llm", built=True, reason="built", identity=stated)
    monkeypatch.setattr(build_engine, "build_from_checkpoint", lambda ctx: report)
    lab = exported_lab(deployment={"engine": "tensorrt_llm", "context_tokens": 256})
    record = lab.execute("build_engine", build_engine.run)
    assert names(record) == {"engine/engine.json", "identity.json"}
    limits = ENGINE_IDENTITY.find(lab.run).limits
    assert limits == {"max_batch_size": 3, "max_total_tokens": 256}
