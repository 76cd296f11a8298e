import json
import stat
from dataclasses import replace

import pytest
from tests.lab.releases import point
from tests.lab.releases import release as make_release

from tuneline.errors import TunelineError
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.keys import KeyRing
from tuneline.serving.release.released import newest_release
from tuneline.stack import release
from tuneline.stack.lifecycle import Stack
from tuneline.store import CorruptObject, open_store


def test_the_newest_release_is_found(layout):
    store = open_store(layout.store)
    assert newest_release(store) is None
    point(store, "a", "1", "2026-10-02T00:00:00Z")
    point(store, "b", "7", "2026-10-03T00:00:00Z")
    # Not a pointer, though named like one.
    store.put_bytes("models/c/1/production.json", b"{}")
    newest = newest_release(store)
    assert (newest.name, newest.version) == ("b", "7")


def test_a_release_without_local_weights_is_refused(layout):
    found = leave_release(layout, {})
    with pytest.raises(TunelineError, match="states no model"):
        release.serve(Stack(layout, print), found, print)


def leave_release(layout, files):
    store = open_store(layout.store)
    make_release(store, files)
    return newest_release(store)


def test_the_gateway_counts_and_prices_as_the_release_says(layout):
    settings = {
        "governance": {"machine_cost_per_hour": 0.36, "currency": "EUR"},
        "data": {"languages": ["en", "de"]},
    }
    latency = {"measurements": [{"name": "peak_tokens_per_s", "value": 50.0}]}
    found = leave_release(
        layout,
        {
            "tokenizer.json": b"{}",
            "config.json": json.dumps(settings).encode(),
            "evidence/latency_benchmark/evidence.json": json.dumps(latency).encode(),
        },
    )
    config = GatewayConfig.model_validate(release.gateway_config(layout, found, 4711))
    (upstream,) = config.upstreams
    assert upstream.tokenizer.read_bytes() == b"{}"
    # A second of the machine costs 0.0001 and writes 50 tokens.
    assert upstream.price.rates().cost(1000, 1000) == pytest.approx(0.002)
    assert config.currency == "EUR"
    assert upstream.base_url == "http://127.0.0.1:4711/v1"
    assert upstream.version == "1"
    assert config.production_log.store == layout.store
    assert config.production_log.spool == layout.home / "serving" / "spool"
    assert config.production_log.languages == ("en", "de")
    assert config.production_log.sample_rate == 1.0


def test_requests_are_logged_as_the_user_says(layout):
    found = leave_release(layout, {})
    section = release.gateway_config(replace(layout, log_sample_rate=0.1), found, 1)
    assert section["production_log"]["sample_rate"] == 0.1
    assert "production_log" not in release.gateway_config(
        replace(layout, log_sample_rate=0.0), found, 1
    )


def test_a_tokenizer_that_was_changed_is_refused(layout):
    found = leave_release(layout, {"tokenizer.json": b"{}"})
    open_store(layout.store).put_bytes("models/a/1/tokenizer.json", b"[]")
    with pytest.raises(CorruptObject):
        release.gateway_config(layout, found, 4711)


def test_a_release_that_was_never_measured_is_served_without_price(layout):
    config = release.gateway_config(layout, leave_release(layout, {}), 4711)
    assert not {"price", "tokenizer"} & config["upstreams"][0].keys()
    assert GatewayConfig.model_validate(config).currency == "USD"


def test_the_key_is_private_stays_and_opens_the_gateway(layout):
    key = release.api_key(layout)
    assert release.api_key(layout) == key
    path = layout.home / "serving" / "api-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing(layout.home / "serving" / "keys.json").name_of(key) == "demo"
    path.unlink()
    assert release.api_key(layout) != key


def test_the_curl_line_names_a_file_with_the_request(layout):
    line = release.curl_line(layout, {"model": "a", "messages": []})
    body = layout.home / "serving" / "request.json"
    assert json.loads(body.read_text()) == {"model": "a", "messages": []}
    assert f"-d @{body}" in line
    assert "http://localhost:18000/v1/chat/completions" in line
