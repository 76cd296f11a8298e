"""The chain that is served, from releases, engines and settings."""

import json

import pytest
from pydantic import ValidationError
from tests.lab.releases import opened, release

from tuneline.artifacts.governance import Calibration, Threshold
from tuneline.config.governance import FallbackConfig
from tuneline.serving.following.chain import ChainSettings, served_chain, settings_of
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.store import open_store

NEW = {"name": "support-b", "base_url": "http://127.0.0.1:8081/v1", "model": "support"}
OLD = {"name": "support-a", "base_url": "http://127.0.0.1:8082/v1", "model": "support"}
LARGER = {
    "base_url": "https://models.example.com/v1",
    "model": "large",
    "api_key_env": "LARGE_MODEL_KEY",
    "context_tokens": 128_000,
    "per_1k_prompt": 0.003,
}
SETTINGS = FallbackConfig.model_validate(
    {"larger": LARGER, "allowed_hosts": ["models.example.com"], "stream_window_tokens": 8}
)


def calibration(whole: float | None, stream: float | None, tokens: int = 8) -> Calibration:
    return Calibration(
        candidate_sha256="c",
        engine="llama_cpp 1",
        rows=100,
        wrong=10,
        max_tokens=64,
        caught_share=0.3,
        false_alarm_share=0.1,
        whole=Threshold(value=whole, reason="as measured"),
        stream=Threshold(value=stream, tokens=tokens, reason="as measured"),
    )


def loaded(chain) -> GatewayConfig:
    document = {
        "keys_file": "keys.json",
        "ledger": {"path": "usage.sqlite"},
        "upstreams": list(chain.upstreams),
        "models": [chain.model],
    }
    return GatewayConfig.model_validate(document)


def test_the_release_the_one_before_and_the_larger_model(monkeypatch):
    monkeypatch.setenv("LARGE_MODEL_KEY", "x")
    config = loaded(
        served_chain("support", [NEW, OLD], ChainSettings(SETTINGS, calibration(-0.4, -0.7)))
    )
    (model,) = config.models
    assert model.chain == ("support-b", "support-a", "support-larger")
    assert model.budget_s == SETTINGS.budget_s
    limits = model.low_confidence
    assert (limits.min_mean_logprob, limits.stream_min_mean_logprob) == (-0.4, -0.7)
    assert limits.stream_window_tokens == 8
    larger = config.upstreams[-1]
    assert (larger.context_tokens, larger.ping, larger.api_key_env) == (
        128_000,
        False,
        "LARGE_MODEL_KEY",
    )
    assert larger.price.rates().cost(1000, 1000) == pytest.approx(0.003)
    assert {upstream.answer_timeout_s for upstream in config.upstreams} == {60.0}


def test_a_first_release_stands_alone():
    settings = ChainSettings(FallbackConfig(), calibration(-0.4, -0.7))
    chain = served_chain("support", [NEW], settings)
    # Nobody could be asked about a doubtful answer.
    assert "low_confidence" not in chain.model
    assert loaded(chain).models[0].chain == ("support-b",)


@pytest.mark.parametrize("found", [None, calibration(None, None), calibration(None, -0.5)])
def test_without_a_threshold_no_answer_is_doubted(found):
    chain = served_chain("s", [NEW, OLD], ChainSettings(FallbackConfig(), found))
    assert "low_confidence" not in chain.model


@pytest.mark.parametrize("found", [calibration(-0.4, None), calibration(-0.4, -0.7, tokens=16)])
def test_streams_are_judged_by_a_threshold_of_their_own_window_or_not(found):
    chain = served_chain("s", [NEW, OLD], ChainSettings(SETTINGS, found))
    assert chain.model["low_confidence"] == {"min_mean_logprob": -0.4}


def test_prompts_go_to_no_host_that_is_not_allowed():
    with pytest.raises(ValidationError, match="which allowed_hosts does not name"):
        FallbackConfig.model_validate({"larger": LARGER})


def test_a_key_in_the_address_is_refused():
    address = {**LARGER, "base_url": "https://user:secret@models.example.com/v1"}
    with pytest.raises(ValidationError, match="no user, password"):
        FallbackConfig.model_validate({"larger": address, "allowed_hosts": ["models.example.com"]})


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def test_settings_and_thresholds_are_those_of_the_release(store):
    config = {"governance": {"fallback": {"budget_s": 33}}}
    found = calibration(-0.4, -0.7)
    files = {
        "config.json": json.dumps(config).encode(),
        "calibration.json": found.model_dump_json(by_alias=True).encode(),
    }
    release(store, files)
    settings = settings_of(opened(store))
    assert settings.fallback.budget_s == 33
    assert settings.calibration == found


def test_a_release_without_either_takes_the_defaults(store):
    release(store, {})
    assert settings_of(opened(store)) == ChainSettings()


HOSTS, KEYS = ["Models.Example.COM"], {"models.example.com": "LARGE_MODEL_KEY"}


def test_a_host_is_allowed_whatever_its_case():
    assert ChainSettings(SETTINGS).within(HOSTS, KEYS) == ChainSettings(SETTINGS)


@pytest.mark.parametrize(("hosts", "keys"), [([], KEYS), (["other.example"], KEYS), (HOSTS, {})])
def test_a_gateway_that_may_not_call_the_larger_model_is_served_without(hosts, keys):
    settings = ChainSettings(SETTINGS).within(hosts, keys)
    chain = served_chain("support", [NEW], settings, behind=["own"])
    assert chain.model["chain"] == ["support-b", "own"]
    assert [upstream["name"] for upstream in chain.upstreams] == ["support-b"]
