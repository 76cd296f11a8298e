"""What a gateway is to serve: the chain of a release, the limits of a candidate, the document."""

import json

import pytest
from pydantic import ValidationError
from tests.lab.releases import opened, release

from tuneline.artifacts.deployment import WarmUp
from tuneline.artifacts.governance import Calibration, Threshold
from tuneline.config.governance import FallbackConfig
from tuneline.serving.following.chain import (
    ChainSettings,
    candidate_limits,
    served_chain,
    settings_of,
)
from tuneline.serving.following.gateway_file import (
    CanaryEntry,
    GatewayFile,
    ServedEntry,
    gateway_document,
    read_facts,
)
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.store import CorruptObject, open_store

OWNERS = {"keys_file": "/k.json", "ledger": {"path": "/u.sqlite"}}


def entry(name="a-1", **fields):
    return {"name": name, "base_url": "http://127.0.0.1:4711/v1", "model": "a", **fields}


def document(entries=(), languages=(), currencies=(), **settings) -> GatewayConfig:
    written = gateway_document({**OWNERS, **settings}, entries, languages, currencies)
    return GatewayConfig.model_validate(written)


NEW, OLD = entry("support-b"), entry("support-a")
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
    served = {"upstreams": list(chain.upstreams), "models": [chain.model]}
    return GatewayConfig.model_validate({**OWNERS, **served})


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


def test_a_larger_model_is_told_the_task_and_keeps_its_sampling(monkeypatch):
    monkeypatch.setenv("LARGE_MODEL_KEY", "x")
    measured = {"system": "Be kind.", "defaults": {"temperature": 0}}
    chain = served_chain("support", [NEW | measured, OLD], ChainSettings(SETTINGS))
    new, old, larger = loaded(chain).upstreams
    assert [new.system, old.system, larger.system] == ["Be kind.", None, "Be kind."]
    assert [new.defaults, old.defaults, larger.defaults] == [{"temperature": 0}, {}, {}]


def test_a_first_release_stands_alone():
    settings = ChainSettings(FallbackConfig(), calibration(-0.4, -0.7))
    chain = served_chain("support", [NEW], settings)
    # Nobody could be asked about a doubtful answer.
    assert "low_confidence" not in chain.model
    assert loaded(chain).models[0].chain == ("support-b",)


@pytest.mark.parametrize(
    ("found", "limits"),
    [
        # Without a threshold no answer is doubted.
        *((none, None) for none in (None, calibration(None, None), calibration(None, -0.5))),
        # Streams are judged by a threshold of their own window or not.
        (calibration(-0.4, None), {"min_mean_logprob": -0.4}),
        (calibration(-0.4, -0.7, tokens=16), {"min_mean_logprob": -0.4}),
    ],
)
def test_answers_are_doubted_by_thresholds_that_fit(found, limits):
    chain = served_chain("s", [NEW, OLD], ChainSettings(SETTINGS, found))
    assert chain.model.get("low_confidence") == limits


def test_prompts_and_keys_go_to_no_host_that_is_not_allowed():
    with pytest.raises(ValidationError, match="which allowed_hosts does not name"):
        FallbackConfig.model_validate({"larger": LARGER})
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
    release(store, {}, name="bare")
    assert settings_of(opened(store, "bare")) == ChainSettings()
    assert settings.calibration == found


HOSTS, KEYS = ["Models.Example.COM"], {"models.example.com": "LARGE_MODEL_KEY"}


def test_a_host_is_allowed_whatever_its_case():
    assert ChainSettings(SETTINGS).within(HOSTS, KEYS) == ChainSettings(SETTINGS)


@pytest.mark.parametrize(("hosts", "keys"), [([], KEYS), (["other.example"], KEYS), (HOSTS, {})])
def test_a_gateway_that_may_not_call_the_larger_model_is_served_without(hosts, keys):
    settings = ChainSettings(SETTINGS).within(hosts, keys)
    chain = served_chain("support", [NEW], settings, behind=["own"])
    assert chain.model["chain"] == ["support-b", "own"]
    assert [upstream["name"] for upstream in chain.upstreams] == ["support-b"]


EIGHT = FallbackConfig(stream_window_tokens=8)
RELEASED = ChainSettings(EIGHT, calibration(-0.4, -0.7))


def candidate(whole=-0.9, stream=-1.2, *, tokens=8, cost=0.1, window=8):
    found = calibration(whole, stream, tokens).model_copy(update={"false_alarm_share": cost})
    return ChainSettings(FallbackConfig(stream_window_tokens=window), found)


OWN = {"min_mean_logprob": -0.9, "stream_window_tokens": 8, "stream_min_mean_logprob": -1.2}


@pytest.mark.parametrize(
    ("released", "tried", "limits"),
    [
        # Another scale is judged by its own threshold.
        (RELEASED, candidate(), OWN),
        # Fewer right answers are to be sent on, so the threshold lies lower.
        (RELEASED, candidate(cost=0.01), None),
        (RELEASED, candidate(cost=0.2), None),
        # No threshold at all, none for streams, or one for another beginning.
        (RELEASED, candidate(whole=None), None),
        (RELEASED, candidate(stream=None), None),
        (RELEASED, candidate(window=0), None),
        (RELEASED, candidate(tokens=4, window=4), None),
        (RELEASED, ChainSettings(EIGHT, None), None),
        # Where the release is not judged the candidate is not either.
        (ChainSettings(EIGHT, None), candidate(), None),
    ],
)
def test_a_candidate_gets_no_better_by_what_it_ships(released, tried, limits):
    assert candidate_limits(released, tried) == limits


def served(limits, *, chain=("a-1", "a-0"), **owner):
    tried = CanaryEntry(entry("a-2"), 0.1, limits)
    model = ServedEntry("a", "2", tuple(map(entry, chain)), RELEASED, tried)
    owned = {"models": [{"id": "a", **owner}]} if owner else {}
    return document([model], **owned).models[-1]


def test_each_engine_of_the_chain_has_the_limits_of_its_release():
    model = served(candidate_limits(RELEASED, candidate()))
    found = {name: model.limits_of(name).min_mean_logprob for name in ("a-2", "a-1", "a-0")}
    assert found == {"a-2": -0.9, "a-1": -0.4, "a-0": -0.4}
    # One threshold for both.
    assert served(None).limits_of("a-2").min_mean_logprob == -0.4


def test_limits_of_the_owner_and_a_chain_that_is_not_judged_hold_for_both():
    own = candidate_limits(RELEASED, candidate())
    low = {"min_mean_logprob": -2.0}
    assert served(own, low_confidence=low).limits_of("a-2").min_mean_logprob == -2.0
    alone = served(own, chain=("a-1",))
    assert alone.limits_of("a-1") is alone.limits_of("a-2") is None


def facts(store, tmp_path, files):
    release(store, files)
    return read_facts(opened(store), tmp_path / "releases")


def test_tokens_are_counted_and_priced_as_the_release_says(store, tmp_path):
    settings = {
        "governance": {"machine_cost_per_hour": 0.36, "currency": "EUR"},
        "data": {"languages": ["en", "de"]},
    }
    latency = {"measurements": [{"name": "peak_tokens_per_s", "value": 50.0}]}
    files = {
        "tokenizer.json": b"{}",
        "config.json": json.dumps(settings).encode(),
        "evidence/latency_benchmark/evidence.json": json.dumps(latency).encode(),
    }
    found = facts(store, tmp_path, files)
    served = ServedEntry("a", "1", (entry(**found.fields),))
    log = {"store": "file:///s", "spool": "/spool"}
    config = document([served], found.languages, [found.currency], production_log=log)
    (upstream,) = config.upstreams
    assert upstream.tokenizer.read_bytes() == b"{}"
    # A second of the machine costs 0.0001 and writes 50 tokens.
    assert upstream.price.rates().cost(1000, 1000) == pytest.approx(0.002)
    assert config.currency == "EUR"
    assert config.production_log.languages == ("en", "de")
    assert config.models[0].released == "1"
    # A release that was never measured is served without a price.
    release(store, {}, name="bare")
    found = read_facts(opened(store, "bare"), tmp_path / "releases")
    assert (found.fields, found.languages, found.currency) == ({}, (), None)


def test_the_warm_up_begins_as_the_prompts_of_the_release_do(store, tmp_path):
    stated = WarmUp(system="Answer in JSON.", share=0.98, rows=400)
    files = {"warm_up.json": stated.model_dump_json(by_alias=True).encode()}
    fields = facts(store, tmp_path, files).fields
    assert fields == {"warmup_system": "Answer in JSON."}
    config = document([ServedEntry("a", "1", (entry(**fields),))])
    assert config.upstreams[0].warmup_system == "Answer in JSON."


def test_a_tokenizer_that_was_changed_is_refused(store, tmp_path):
    release(store, {"tokenizer.json": b"{}"})
    store.put_bytes("models/a/1/tokenizer.json", b"[]")
    with pytest.raises(CorruptObject):
        read_facts(opened(store), tmp_path / "releases")


def test_what_the_owner_has_set_stays_and_stands_behind_the_releases():
    low = {"min_mean_logprob": -1.0}
    models = [
        {"id": "a", "chain": ["larger"], "low_confidence": low},
        {"id": "other", "chain": ["larger"]},
    ]
    served = ServedEntry("a", "2", (entry("a-2"), entry("a-1")))
    config = document([served], upstreams=[entry("larger")], models=models, max_in_flight=7)
    chains = {model.id: model.chain for model in config.models}
    assert chains == {"a": ("a-2", "a-1", "larger"), "other": ("larger",)}
    assert config.models[-1].low_confidence.min_mean_logprob == -1.0
    assert config.max_in_flight == 7
    # One upstream alone is not judged, and before a first release nothing is served.
    alone = document([ServedEntry("a", "1", (entry(),))], models=[{**models[0], "chain": []}])
    assert alone.models[0].low_confidence is None
    assert document().upstreams == document().models == ()


def test_a_file_that_was_there_before_says_not_what_its_engines_have_loaded(tmp_path):
    written = gateway_document(
        OWNERS, [ServedEntry("a", "1", (entry(weights_sha256="0" * 64),))], [], []
    )
    file = GatewayFile(tmp_path / "gateway.yaml", "http://127.0.0.1:9")
    file.write(written)
    assert [one["weights_sha256"] for one in file.entries()["a"]] == [None]


def test_a_release_names_no_host_and_no_key_that_the_owner_does_not(monkeypatch):
    """The gateway refuses them as well, whoever writes its file."""
    monkeypatch.setenv("LARGE", "secret")
    larger = {"base_url": "https://models.example.com/v1", "model": "m", "api_key_env": "LARGE"}
    chosen = FallbackConfig.model_validate(
        {"larger": larger, "allowed_hosts": ["models.example.com"]}
    )
    served = ServedEntry("a", "1", (entry(),), ChainSettings(chosen))
    allowed = {"allowed_hosts": ["models.example.com"]}
    keys = {"upstream_keys": {"models.example.com": "LARGE"}}
    for settings, chain in (
        ({}, ("a-1",)),
        (allowed, ("a-1",)),
        (keys, ("a-1",)),
        ({**allowed, "upstream_keys": {"models.example.com": "OTHER"}}, ("a-1",)),
        ({**allowed, **keys}, ("a-1", "a-larger")),
    ):
        written = gateway_document({**OWNERS, **settings}, [served], [], [])
        assert GatewayConfig.model_validate(written).models[0].chain == chain
        written["upstreams"].append(entry("evil", base_url="https://evil.example.com/v1"))
        with pytest.raises(ValidationError, match="which allowed_hosts does not name"):
            GatewayConfig.model_validate(written)
