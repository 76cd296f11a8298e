import json
import stat
from dataclasses import replace

from tests.lab.releases import log_release

from tuneline.serving.following.release import newest_release
from tuneline.serving.gateway.accounts.keys import KeyRing
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.stack import serving
from tuneline.store import open_store


def test_the_newest_release_is_found(layout):
    store = open_store(layout.store)
    assert newest_release(store) is None
    log_release(store, "a", "1", "0" * 64, "2026-10-02T00:00:00Z")
    log_release(store, "b", "7", "0" * 64, "2026-10-03T00:00:00Z")
    # Not a pointer, though named like one.
    store.put_bytes("models/c/1/production.json", b"{}")
    # Damaged, or of another version of Tuneline.
    store.put_bytes("models/d/production.json", b"{}")
    newest = newest_release(store)
    assert (newest.name, newest.version) == ("b", "7")


def test_the_settings_are_a_gateways_configuration(layout):
    whole = {**serving.gateway_settings(layout), "upstreams": [], "models": []}
    config = GatewayConfig.model_validate(whole)
    assert config.port == layout.gateway_port
    assert config.production_log.store == layout.store
    assert config.production_log.spool == layout.home / "serving" / "spool"
    assert config.production_log.sample_rate == 1.0


def test_requests_are_logged_as_the_user_says(layout):
    section = serving.gateway_settings(replace(layout, log_sample_rate=0.1))
    assert section["production_log"]["sample_rate"] == 0.1
    assert "production_log" not in serving.gateway_settings(replace(layout, log_sample_rate=0.0))


def test_the_key_is_private_stays_and_opens_the_gateway(layout):
    key = serving.api_key(layout)
    assert serving.api_key(layout) == key
    path = layout.home / "serving" / "api-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyRing(layout.home / "serving" / "keys.json").name_of(key) == "demo"
    path.unlink()
    assert serving.api_key(layout) != key


def test_the_curl_line_names_a_file_with_the_request(layout):
    line = serving.curl_line(layout, {"model": "a", "messages": []})
    body = layout.home / "serving" / "request.json"
    assert json.loads(body.read_text()) == {"model": "a", "messages": []}
    assert f"-d @{body}" in line
    assert "http://localhost:18000/v1/chat/completions" in line
