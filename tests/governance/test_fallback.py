"""fallback: faults that reach the second model pass, those that do not are caught."""

import signal

import pytest
from tests.lab.releases import release
from tests.lab.runs import broken, value

from tuneline.governance import fallback
from tuneline.governance.fallback import FaultReport, summarise
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.gateway.process import Answer


def test_answers_are_counted_by_who_gave_them():
    answers = [
        Answer(200, {}, "fallback", "connect_error", 0.1),
        Answer(200, {}, "primary", None, 0.1),
        Answer(503, {}, None, None, 0.1),
    ]
    assert summarise("killed", answers) == FaultReport("killed", 3, 2, 1, ["connect_error"])


@pytest.fixture
def chain_lab(served_lab, monkeypatch):
    """Make a run of two real servers; a hung one is left sooner than in a real run."""
    monkeypatch.setattr(fallback, "HANG_SECONDS", 3.0)
    return served_lab


def test_every_fault_is_answered_by_the_base_model(chain_lab):
    lab = chain_lab()
    evidence = lab.execute("fallback")
    assert evidence.verdict == "pass"
    assert "9 of 9 requests under 3 injected faults were answered, 9 by the base model" in (
        evidence.summary
    )
    reports = {report["fault"]: report for report in lab.document("fallback", "faults.json")}
    assert reports["low_confidence"]["reasons"] == ["low_confidence"]
    assert reports["hang"]["reasons"] == ["timeout"]
    assert reports["killed"]["reasons"] == ["connect_error"]
    assert reports["none"]["answered"] == 4
    assert value(evidence, "calm_by_candidate") >= 1


def test_a_chain_whose_second_model_is_gone_fails(chain_lab, monkeypatch):
    class Gone(LlamaServer):
        def start(self):
            super().start()
            if self.alias == fallback.SECOND_ID:
                self.kill()

    monkeypatch.setattr("tuneline.serving.engines.llama_cpp.engine.LlamaServer", Gone)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    unanswered = {f"{fault}_by_fallback" for fault in ("low_confidence", "hang", "killed")}
    assert broken(evidence) == unanswered | {"answered_share", "reasons_missing"}
    assert value(evidence, "killed_by_fallback") == 0


def test_an_answer_of_the_hung_primary_fails(chain_lab, monkeypatch):
    """The gateway waits until the primary wakes up, and the primary answers after all."""

    class Wakes(LlamaServer):
        def signal(self, number):
            if number != signal.SIGSTOP:
                super().signal(number)

    monkeypatch.setattr("tuneline.serving.engines.llama_cpp.engine.LlamaServer", Wakes)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"hang_by_fallback", "reasons_missing"}


def test_a_confidence_that_no_answer_reaches_in_calm_fails(chain_lab):
    evidence = chain_lab(governance={"min_confidence": -1e-9}).execute("fallback")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"calm_by_candidate"}


def test_the_previous_release_is_the_second_model(served_lab, tiny_models):
    lab = served_lab(name="model")
    release(lab.run.store, {"model.gguf": tiny_models.base_gguf.read_bytes()}, name="model")
    model, described = fallback.second_model(lab.context("fallback"))
    assert described == "the previous release 1"
    assert model.engine == "llama_cpp"
    assert model.path.read_bytes() == tiny_models.base_gguf.read_bytes()
