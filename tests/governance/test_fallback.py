"""fallback: faults that the chain answers pass, those that it does not are caught."""

import signal
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from tests.lab.releases import release
from tests.lab.runs import broken, value

from tuneline.artifacts.governance import BY_HAND, Calibration, Threshold
from tuneline.governance import fallback
from tuneline.governance.gateway.faults import report
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.gateway.process import GatewayAnswer

# Real answers of the tiny models take far less.
QUICK = {"first_token_timeout_s": 3.0, "answer_timeout_s": 5.0, "budget_s": 20.0}
FAULTS = set("none hung dies_midstream killed both_gone".split())


def seen(by: str | None, *, complete: bool = True, error: bool = False, reason: str | None = None):
    body = {"error": {"code": "timeout"}} if error else {}
    return GatewayAnswer(200 if complete else 502, body, complete, by, reason)


def test_requests_are_counted_by_how_they_ended():
    some = [
        seen("second", reason="timeout"),
        seen("first"),
        seen(None, complete=False, error=True),
        seen(None, complete=False),
    ]
    found = report("hung", "second", some)
    assert (found.requests, found.as_expected, found.ended) == (4, 1, 3)
    assert found.reasons == ["timeout"]
    # A clean error is what must come where nobody can answer.
    assert report("both_gone", "error", some).as_expected == 1


@pytest.fixture
def chain_lab(served_lab):
    """Make a run of two real servers; a hung one is left sooner than in a real run."""

    def make(**settings):
        given = {"fallback": {**QUICK, "stream_window_tokens": 4, **settings}}
        return served_lab(governance=given, evaluation={"max_new_tokens": 24})

    return make


def by_fault(lab) -> dict:
    return {entry["fault"]: entry for entry in lab.document("fallback", "faults.json")}


def test_every_fault_ends_as_it_must(chain_lab):
    lab = chain_lab()
    evidence = lab.execute("fallback")
    reports = by_fault(lab)
    assert set(reports) - {"unsure"} == FAULTS
    # Nothing is served behind a first release, and too few answers are wrong for a threshold.
    assert broken(evidence) == {"models_to_fall_back_to", "min_mean_logprob"}
    assert evidence.verdict == "inconclusive"
    assert reports["hung"]["reasons"] == ["timeout"]
    assert (reports["dies_midstream"]["expected"], reports["dies_midstream"]["planted"]) == (
        "error",
        True,
    )
    assert {"connect_error", "connection_lost"} & {*reports["killed"]["reasons"]}


def test_the_threshold_that_is_served_is_tried(chain_lab):
    lab = chain_lab()
    lab.execute("fallback")
    told = lab.document("fallback", "calibration.json")
    rows = [row["whole"] for row in lab.lines("fallback", "confidences.jsonl")]
    # Between the least and the most sure answer, as a person might set it.
    limit = sorted(rows)[len(rows) // 2]
    threshold = Threshold(value=limit, reason="set by a person")
    calibration = Calibration.model_validate(told).model_copy(update={"whole": threshold})
    BY_HAND.put(lab.run, calibration)
    evidence = lab.execute("fallback")
    assert value(evidence, "min_mean_logprob") == limit
    assert by_fault(lab)["unsure"]["reasons"] == ["low_confidence"]
    assert value(evidence, "unsure_as_expected") >= 1
    assert broken(evidence) == {"models_to_fall_back_to"}


def test_a_stream_that_goes_on_breaks_however_doubtful_it_is(chain_lab):
    """What a model is made to write beyond its answer is less likely than any threshold."""
    lab = chain_lab(stream_window_tokens=64)
    lab.execute("fallback")
    told = lab.document("fallback", "calibration.json")
    whole = Threshold(value=-99.0, reason="set by a person")
    stream = Threshold(value=-1e-6, reason="set by a person", tokens=64)
    changed = {"whole": whole, "stream": stream}
    BY_HAND.put(lab.run, Calibration.model_validate(told).model_copy(update=changed))
    lab.execute("fallback")
    report = by_fault(lab)["dies_midstream"]
    assert (report["planted"], report["as_expected"]) == (True, 1)


def test_a_chain_whose_second_model_is_gone_fails(chain_lab, monkeypatch):
    class Gone(LlamaServer):
        def start(self):
            super().start()
            if self.alias == fallback.SECOND_ID:
                self.kill()

    monkeypatch.setattr("tuneline.serving.engines.llama_cpp.engine.LlamaServer", Gone)
    monkeypatch.setattr("tuneline.governance.gateway.faults.Chain._recover", lambda *_: None)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    assert {"hung_as_expected", "killed_as_expected"} <= broken(evidence)
    assert value(evidence, "killed_as_expected") == 0


def test_a_silent_end_fails(chain_lab, monkeypatch):
    def silent(*given, **how):
        seen = ask(*given, **how)
        return replace(seen, body={}) if seen.clean_error else seen

    ask = fallback.GatewayProcess.ask
    monkeypatch.setattr(fallback.GatewayProcess, "ask", silent)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    names = {"ended_share", "both_gone_as_expected"}
    assert broken(evidence) == {"models_to_fall_back_to", "min_mean_logprob", *names}


def test_a_stream_that_was_not_broken_off_fails(chain_lab, monkeypatch):
    monkeypatch.setattr("tuneline.governance.gateway.faults.has_text", lambda _: False)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    # The release lives on, and answers.
    assert {"faults_not_planted", "dies_midstream_as_expected"} <= broken(evidence)


def test_an_answer_of_the_hung_primary_fails(chain_lab, monkeypatch):
    """The primary answers although it should hang."""

    class Wakes(LlamaServer):
        def signal(self, number):
            if number != signal.SIGSTOP:
                super().signal(number)

    monkeypatch.setattr("tuneline.serving.engines.llama_cpp.engine.LlamaServer", Wakes)
    evidence = chain_lab().execute("fallback")
    assert evidence.verdict == "fail"
    assert {"hung_as_expected", "reasons_missing"} <= broken(evidence)


def test_the_previous_release_is_the_second_model(served_lab, tiny_models):
    lab = served_lab(name="model", profile="production")
    release(lab.run.store, {"model.gguf": tiny_models.base_gguf.read_bytes()}, name="model")
    second = fallback.second_model(lab.context("fallback"))
    assert (second.name, second.described) == ("model-1", "the previous release 1")
    assert second.served
    assert second.model.engine == "llama_cpp"
    assert second.model.path.read_bytes() == tiny_models.base_gguf.read_bytes()


@pytest.mark.parametrize(
    ("address", "key", "why"),
    [
        ("https://models.example.com/v1", "LARGE_MODEL_KEY", None),
        ("http://vllm-large:8000/v1", None, None),
        ("http://127.0.0.1:8000/v1", None, None),
        ("https://models.example.com/v1", "NOT_SET_HERE", "does not list NOT_SET_HERE"),
        ("https://models.example.com/v1", "AWS_SECRET_ACCESS_KEY", "upstream_keys does not list"),
        ("https://evil.example.com/v1", "LARGE_MODEL_KEY", "does not list evil.example.com"),
        ("http://models.example.com/v1", "LARGE_MODEL_KEY", "list http://models.example.com"),
        ("http://127.0.0.1:8000/v1", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY for 127."),
    ],
)
def test_a_run_sends_prompts_and_keys_where_the_policy_says(policy, monkeypatch, address, key, why):
    """Whoever starts a run names any host and any variable, and allows them."""
    policy(
        allowed_hosts=["models.example.com", "http://vllm-large"],
        upstream_keys={"models.example.com": "LARGE_MODEL_KEY"},
    )
    for name in ("LARGE_MODEL_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    larger = {"base_url": address, "model": "large", "api_key_env": key}
    settings = fallback.FallbackConfig.model_validate(
        {"larger": larger, "allowed_hosts": [urlsplit(address).hostname]}
    )
    tried, untried = fallback.reachable(settings)
    assert (tried.larger is None) == (why is not None)
    assert (why is None and untried is None) or why in untried
    monkeypatch.delenv("LARGE_MODEL_KEY")
    if key == "LARGE_MODEL_KEY" and why is None:
        assert "LARGE_MODEL_KEY is not set here" in fallback.reachable(settings)[1]


def test_without_a_word_of_the_policy_no_prompt_leaves_the_machine():
    larger = {"base_url": "https://models.example.com/v1", "model": "large"}
    settings = fallback.FallbackConfig.model_validate(
        {"larger": larger, "allowed_hosts": ["models.example.com"]}
    )
    assert fallback.reachable(settings)[0].larger is None
