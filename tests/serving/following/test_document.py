"""The gateway's configuration that a follower writes: prices, tokenizers, settings of the owner."""

import json

import pytest
from pydantic import ValidationError
from tests.lab.releases import opened, release

from tuneline.artifacts.deployment import WarmUp
from tuneline.config.governance import FallbackConfig
from tuneline.serving.following.chain import ChainSettings
from tuneline.serving.following.gateway_file import ServedEntry, gateway_document, read_facts
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.store import CorruptObject, open_store

SETTINGS = {"keys_file": "/k.json", "ledger": {"path": "/u.sqlite"}}


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


def facts(store, tmp_path, files):
    release(store, files)
    return read_facts(opened(store), tmp_path / "releases")


def entry(name="a-1", **fields):
    return {"name": name, "base_url": "http://127.0.0.1:4711/v1", "model": "a", **fields}


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
    logged = {"production_log": {"store": "file:///s", "spool": "/spool"}}
    document = gateway_document({**SETTINGS, **logged}, [served], found.languages, [found.currency])
    config = GatewayConfig.model_validate(document)
    (upstream,) = config.upstreams
    assert upstream.tokenizer.read_bytes() == b"{}"
    # A second of the machine costs 0.0001 and writes 50 tokens.
    assert upstream.price.rates().cost(1000, 1000) == pytest.approx(0.002)
    assert config.currency == "EUR"
    assert config.production_log.languages == ("en", "de")
    assert config.models[0].released == "1"


def test_a_release_that_was_never_measured_is_served_without_price(store, tmp_path):
    found = facts(store, tmp_path, {})
    assert (found.fields, found.languages, found.currency) == ({}, (), None)


def test_the_warm_up_begins_as_the_prompts_of_the_release_do(store, tmp_path):
    stated = WarmUp(system="Answer in JSON.", share=0.98, rows=400)
    files = {"warm_up.json": stated.model_dump_json(by_alias=True).encode()}
    fields = facts(store, tmp_path, files).fields
    assert fields == {"warmup_system": "Answer in JSON."}
    document = gateway_document(SETTINGS, [ServedEntry("a", "1", (entry(**fields),))], [], [])
    assert GatewayConfig.model_validate(document).upstreams[0].warmup_system == "Answer in JSON."


def test_a_tokenizer_that_was_changed_is_refused(store, tmp_path):
    release(store, {"tokenizer.json": b"{}"})
    store.put_bytes("models/a/1/tokenizer.json", b"[]")
    with pytest.raises(CorruptObject):
        read_facts(opened(store), tmp_path / "releases")


def test_what_the_owner_has_set_stays_and_stands_behind_the_releases():
    larger = entry("larger")
    other = {"id": "other", "chain": ["larger"]}
    low = {"min_mean_logprob": -1.0}
    settings = {
        **SETTINGS,
        "upstreams": [larger],
        "models": [{"id": "a", "chain": ["larger"], "low_confidence": low}, other],
        "max_in_flight": 7,
    }
    served = ServedEntry("a", "2", (entry("a-2"), entry("a-1")))
    config = GatewayConfig.model_validate(gateway_document(settings, [served], [], []))
    chains = {model.id: model.chain for model in config.models}
    assert chains == {"a": ("a-2", "a-1", "larger"), "other": ("larger",)}
    assert config.models[-1].low_confidence.min_mean_logprob == -1.0
    assert config.max_in_flight == 7


def test_one_upstream_alone_is_not_judged():
    low = {"min_mean_logprob": -1.0}
    settings = {**SETTINGS, "models": [{"id": "a", "chain": [], "low_confidence": low}]}
    served = ServedEntry("a", "1", (entry(),))
    config = GatewayConfig.model_validate(gateway_document(settings, [served], [], []))
    assert config.models[0].low_confidence is None


def test_before_a_first_release_nothing_is_served():
    config = GatewayConfig.model_validate(gateway_document(SETTINGS, [], [], []))
    assert config.upstreams == config.models == ()


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
        document = gateway_document({**SETTINGS, **settings}, [served], [], [])
        assert GatewayConfig.model_validate(document).models[0].chain == chain
        document["upstreams"].append(entry("evil", base_url="https://evil.example.com/v1"))
        with pytest.raises(ValidationError, match="which allowed_hosts does not name"):
            GatewayConfig.model_validate(document)
