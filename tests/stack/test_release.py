import json
import stat

import pytest

from tuneline.errors import TunelineError
from tuneline.serving.gateway.keys import KeyRing
from tuneline.serving.released import newest_release
from tuneline.stack import release
from tuneline.stack.layout import Layout
from tuneline.stack.lifecycle import Stack
from tuneline.store import open_store

ROOT = release.Path(__file__).parents[2]


@pytest.fixture
def layout(tmp_path):
    return Layout(ROOT, tmp_path / "home", 18080, 18000, (tmp_path / "store").as_uri())


def point(store, name, version, at):
    pointer = {"name": name, "version": version, "released_at": at}
    store.put_bytes(f"models/{name}/production.json", json.dumps(pointer).encode())


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
    store = open_store(layout.store)
    point(store, "a", "1", "2026-10-02T00:00:00Z")
    store.put_bytes("models/a/1/manifest.json", json.dumps({"files": []}).encode())
    with pytest.raises(TunelineError, match=r"holds no model\.gguf"):
        release.serve(Stack(layout, print), newest_release(store), print)


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
