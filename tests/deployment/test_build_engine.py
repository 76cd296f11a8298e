import json
from dataclasses import replace

import pytest
from tests.lab.runs import values

from tuneline.artifacts.deployment import ENGINE_IDENTITY
from tuneline.errors import RetryableError, TunelineError
from tuneline.evidence import measure
from tuneline.licenses import stated
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp, LlamaServer
from tuneline.serving.engines.probe import ProbeResult
from tuneline.store import sha256_file
from tuneline.verdicts import status


def names(record):
    return {ref.name for ref in record.artifacts}


def test_llama_cpp_is_identified_after_it_answered(exported_lab, tiny_models):
    lab = exported_lab(deployment={"parallel": 2, "context_tokens": 256})
    record = lab.execute("build_engine")
    packages = {"packages.csv", "open_licenses.json"}
    assert names(record) == {"engine.json", "identity.json", *packages}
    identity = ENGINE_IDENTITY.find(lab.run)
    assert identity.files == {"model.gguf": sha256_file(tiny_models.candidate_gguf)}
    assert identity.limits == {"max_batch_size": 2, "max_total_tokens": 256}
    assert {**identity.limits, "threads": 1} == identity.served
    assert identity.version.startswith("xllamacpp ")
    assert {"variant", "load_seconds", "memory_bytes", "os", "arch", "gpus"} <= set(
        identity.model_dump()
    )
    engine = lab.document("build_engine", "engine.json")
    assert json.loads(engine["answered"])["reply"] == "We look at it."


def package(name, license):
    return {
        **{"name": name, "version": "1", "license": license, "expression": None},
        **{"classifiers": [], "texts": []},
    }


@pytest.mark.parametrize(
    ("packages", "verdict", "said"),
    [
        ([package("xllamacpp", "MIT"), package("planted", "AGPL")], "fail", ""),
        ([package("elsewhere", "MIT")], "warn", "can't be seen: xllamacpp is not among the"),
    ],
)
def test_the_packages_of_the_engine_count_for_the_licence_audit(
    packages, verdict, said, exported_lab, monkeypatch
):
    monkeypatch.setattr(stated, "stated_licenses", lambda: packages)
    lab = exported_lab(
        deployment={"parallel": 1, "context_tokens": 256},
        governance={"intended_use": "distribution"},
    )
    lab.leave("license_audit", {}, [measure("base_model_allowed", True, "flag", "==", True)])
    record = lab.execute("build_engine")
    assert said in record.summary
    found = status(lab.run, "license_audit")
    assert found.verdict == verdict
    if verdict == "fail":
        assert values(record)["license_audit.packages_refused"] == 1
        assert found.stops_release
        assert "license_audit.packages_refused is 1" in found.because


def test_a_file_that_does_not_load_is_not_identified(exported_lab, tiny_models, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_models.candidate_gguf.read_bytes()[:5000])
    lab = exported_lab()
    lab.leave_shipped(broken)
    with pytest.raises(TunelineError):
        lab.execute("build_engine")


def test_an_engine_that_is_not_installed_is_not_built(exported_lab, monkeypatch):
    monkeypatch.setattr(LlamaCpp, "missing", lambda _: "xllamacpp is not installed in this image")
    lab = exported_lab()
    record = lab.execute("build_engine")
    assert names(record) == {"not_built.json"}
    assert values(record)["built"] is False
    assert "xllamacpp is not installed" in record.summary


def test_an_engine_that_loads_but_answers_nothing_is_not_built(exported_lab, monkeypatch):
    """The server listens and lists its model, but no token comes."""

    def silent(*_):
        return ProbeResult(False, "it answered without a token", 0.0)

    monkeypatch.setattr("tuneline.serving.engines.probe.ready", silent)

    def hasty(_, request):
        return LlamaServer(replace(request, start_seconds=3.0))

    monkeypatch.setattr(LlamaCpp, "server", hasty)
    with pytest.raises(RetryableError, match="it answered without a token"):
        exported_lab().execute("build_engine")
