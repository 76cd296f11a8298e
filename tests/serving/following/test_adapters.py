"""Adapters of one base on one real engine: each model id is answered by its own adapter."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.lab.releases import flip, opened, release, release_apart
from tests.lab.tiny_task import INTENTS, OTHER_INTENTS, conversation
from tests.lab.waiting import wait_for

from tuneline.artifacts.deployment import BaseForm
from tuneline.bases import fetch_form
from tuneline.errors import UserError
from tuneline.governance.release.verify import verify
from tuneline.models import resolve
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.following.release import serve_request, upstream_of
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.store import CorruptObject, open_store

ROWS = range(1000, 1012)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def two_teams(store, tiny_models, other_adapter):
    """Two releases of adapters on one base, in the order in which the engine loads them."""
    release_apart(store, tiny_models.base_gguf, tiny_models.adapter_gguf, name="ours")
    release_apart(store, tiny_models.base_gguf, other_adapter, name="theirs")
    return [opened(store, name) for name in ("ours", "theirs")]


def request_of(releases, tmp_path) -> ServeRequest:
    return serve_request(releases, tmp_path / "released", "127.0.0.1", 0)[0]


def right_share(answers, intents):
    """Share of answers that name the intent by a team's own name."""
    right = 0
    for number, answer in zip(ROWS, answers, strict=True):
        text = answer.body["choices"][0]["message"]["content"]
        try:
            right += json.loads(text)["intent"] == conversation(number, intents)[1]
        except (ValueError, KeyError):
            continue
    return right / len(ROWS)


def test_each_model_id_is_answered_by_its_own_adapter_at_once(store, two_teams, tmp_path):
    request = request_of(two_teams, tmp_path)
    assert list(request.adapters) == ["ours@1", "theirs@1"]
    with LlamaServer(request) as server:
        upstreams = [
            upstream_of(release, place, f"{server.base_url}/v1")
            for place, release in enumerate(two_teams)
        ]
        assert [entry["adapter"] for entry in upstreams] == [0, 1]
        models = [{"id": r.name, "chain": [f"{r.name}-1"]} for r in two_teams]
        with GatewayProcess(tmp_path / "gateway", upstreams=upstreams, models=models) as gateway:

            def ask(model):
                def one(number):
                    return gateway.ask(model, conversation(number)[0][:-1], max_tokens=32)

                return list(pool.map(one, ROWS))

            with ThreadPoolExecutor(8) as pool, ThreadPoolExecutor(4) as teams:
                asked = ("ours", "theirs", "ours@1", "theirs@1")
                ours, theirs, ours_1, theirs_1 = teams.map(ask, asked)
            # A client may not choose an adapter by itself.
            chosen = {"lora": [{"id": 1, "scale": 1.0}, {"id": 0, "scale": 0.0}]}
            taken = gateway.ask("ours", conversation(1)[0][:-1], max_tokens=4, extra=chosen)
            unknown = gateway.ask("ours@2", conversation(1)[0][:-1], max_tokens=4)
    assert right_share(ours, INTENTS) > 0.7
    assert right_share(theirs, OTHER_INTENTS) > 0.7
    assert right_share(ours, OTHER_INTENTS) < 0.2

    def texts(answers):
        return [a.body["choices"][0]["message"]["content"] for a in answers]

    # Neighbours in a batch may turn a near-tie, so equality is asked of most answers only.
    same = sum(a == b for a, b in zip(texts(ours), texts(ours_1), strict=True))
    assert same >= len(ROWS) - 2
    assert right_share(theirs_1, OTHER_INTENTS) > 0.7
    assert (taken.status, taken.body["error"]["param"]) == (400, "lora")
    assert (unknown.status, unknown.body["error"]["code"]) == (404, "model_not_found")


def test_a_probe_asks_the_adapter(store, two_teams, tmp_path):
    with LlamaServer(request_of(two_teams, tmp_path)) as server:
        assert engine_probe.ready(server.url, 10.0, "base", 1).ok
        missing = engine_probe.ready(server.url, 10.0, "base", 7)
    # llama.cpp itself would answer with the base alone.
    assert not missing.ok
    assert "it has no adapter 7, only 2 of them" in missing.reason


def test_a_gateway_is_not_ready_without_its_adapter(store, two_teams, tmp_path):
    with LlamaServer(request_of(two_teams[:1], tmp_path)) as server:
        url = f"{server.base_url}/v1"
        upstreams = [upstream_of(r, place, url) for place, r in enumerate(two_teams)]
        models = [{"id": r.name, "chain": [f"{r.name}-1"]} for r in two_teams]
        with GatewayProcess(tmp_path / "gateway", upstreams=upstreams, models=models) as gateway:

            def states():
                return gateway.get("/v1/health/ready").json()["upstreams"]

            wait_for(lambda: states()["ours-1"] == "ready")
            assert states()["theirs-1"] == "adapter 1 is not loaded"


def test_adapters_of_other_bases_and_merged_releases_share_no_engine(
    store, tiny_models, other_adapter, tmp_path
):
    release_apart(store, tiny_models.base_gguf, tiny_models.adapter_gguf, name="ours")
    release_apart(store, tiny_models.candidate_gguf, other_adapter, name="theirs")
    release(store, {"model.gguf": b"w"}, name="merged")
    for other, why in (
        ("theirs", r"theirs 1 is an adapter of .* one engine has one base"),
        ("merged", "merged 1 was released merged"),
    ):
        with pytest.raises(UserError, match=why):
            request_of([opened(store, name) for name in ("ours", other)], tmp_path)


def test_another_base_than_the_stated_one_is_refused(store, two_teams, tiny_models, tmp_path):
    """The store has other bytes under the base's hash; then the fetched copy has."""
    # The store keeps it once.
    (key,) = (k for k in store.keys("bases/served") if k.endswith("model.gguf"))
    flip(request_of(two_teams, tmp_path).model)
    with pytest.raises(CorruptObject, match="other bytes than the base that was evaluated"):
        request_of(two_teams, tmp_path)
    assert verify(store.uri_of("models/ours/1/manifest.json")) == []
    flip(store.root / key)
    with pytest.raises(CorruptObject, match=r"model\.gguf"):
        request_of(two_teams, tmp_path)
    assert len(verify(store.uri_of("models/ours/1/manifest.json"))) == 1


def test_a_base_of_its_own_files_is_hashed_at_each_start(store, tiny_models, tmp_path):
    """Not remembered by size and time, as a run does."""
    folder = shutil.copytree(tiny_models.base, tmp_path / "base")
    base = resolve(str(folder))
    stated = {"uri": base.uri, "digest": base.digest, "sha256": base.digest, "files": base.files}
    form = BaseForm(variant="f16", **stated)
    assert fetch_form(store, form, print) == folder
    weights = folder / "model.safetensors"
    times = weights.stat()
    flip(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorruptObject, match=r"in model\.safetensors; restore them"):
        fetch_form(store, form, print)
