import json

import pytest

from tuneline.deployment import build_engine
from tuneline.errors import TunelineError
from tuneline.store import sha256_file


def names(record):
    return {ref.name for ref in record.artifacts}


def read(lab, name):
    return json.loads(lab.context("prepare_review").input("build_engine", name).read_text())


def test_llama_cpp_is_identified_after_it_answered(exported_lab, tiny_models):
    lab = exported_lab(deployment={"parallel": 2, "context_tokens": 256})
    record = lab.execute("build_engine", build_engine.run)
    assert names(record) == {"engine/engine.json", "identity.json"}
    identity = read(lab, "identity.json")
    assert identity["files"] == {"model.gguf": sha256_file(tiny_models.candidate_gguf)}
    assert identity["limits"] == {"max_batch_size": 2, "max_total_tokens": 256}
    assert identity["version"].startswith("xllamacpp ")
    assert json.loads(read(lab, "engine/engine.json")["answered"])["reply"] == "We look at it."


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
    document = read(lab, "not_built.json")
    assert [command[0] for command in document["commands"]] == ["python", "trtllm-build"]
    assert {m.name: m.value for m in record.measurements}["built"] is False
