"""The manifest: clean ones verify, every change behind its back is named."""

import json
from pathlib import Path

import pytest

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.release_log import Approved, Canary, Released
from tuneline.artifacts.releases import read_release
from tuneline.errors import UserError
from tuneline.evidence import conclude
from tuneline.governance.lineage import code_measurements, collect_files
from tuneline.governance.release.manifest import put_once, write_manifest
from tuneline.governance.release.pointer import read_pointer, record
from tuneline.governance.release.verify import verify
from tuneline.store import open_store, sha256_file

PREFIX = "models/m/v1"
APPROVED = Approved(subject="approve_release", decision="Approve", by="alice", answered_at="now")
RELEASED = Released(previous_version=None, follows=None, by="bob", run="file:///runs/v1")
CANARY = Canary(share=0.1, outcome="started", summary="a tenth of the requests")


def log(store, sha, *events):
    return record(read_pointer(store, "m"), "v1", sha, events)


@pytest.fixture
def model(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    local = tmp_path / "model.gguf"
    local.write_bytes(b"weights")
    digest = sha256_file(local)
    put_once(store, f"{PREFIX}/model.gguf", local, digest)
    files = [{"name": "model.gguf", "sha256": digest, "bytes": 7}]
    sha = write_manifest(store, PREFIX, Manifest(name="m", version="v1", files=files))
    return store, sha, store.uri_of(f"{PREFIX}/manifest.json")


def test_the_tokenizer_ships_with_the_model(make_lab):
    lab = make_lab()
    for step in ("final_audit", "lora_selection", "gradient_accumulation"):
        lab.leave(step, {})
    lab.leave("production_quantization", {})
    lab.leave("export_candidate", {"merged/tokenizer.json": b"{}"})
    lab.leave("train", {"adapter/adapter_config.json": b"{}"})
    lab.leave("build_engine", {"not_built.json": b"{}"})
    files = collect_files(lab.context("lineage"), None)
    assert sorted(files) == ["adapter/adapter_config.json", "tokenizer.json"]
    assert files["tokenizer.json"].read_bytes() == b"{}"


def test_a_clean_model_verifies(model):
    store, sha, uri = model
    log(store, sha, RELEASED)
    log(store, sha, CANARY)
    assert verify(uri) == []


def flip(path):
    path.write_bytes(b"W" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("model.gguf", flip, "model.gguf is corrupt"),
        ("manifest.json", flip, "manifest.json is corrupt"),
        ("model.gguf", Path.unlink, "model.gguf is missing"),
    ],
)
def test_a_change_behind_its_back_is_named(model, name, change, named):
    store, _, uri = model
    change(store.root / PREFIX / name)
    [found] = verify(uri)
    assert named in found


def test_a_swapped_file_with_a_fitting_hash_file_is_named(model):
    store, _, uri = model
    store.put_bytes(f"{PREFIX}/model.gguf", b"other!!")
    assert "model.gguf is corrupt" in verify(uri)[0]


def test_a_rewritten_release_log_breaks_the_chain(model):
    store, sha, uri = model
    log(store, sha, APPROVED, RELEASED)
    lines = store.get_bytes(f"{PREFIX}/release.jsonl").decode()
    store.put_bytes(f"{PREFIX}/release.jsonl", lines.replace("alice", "mallory").encode())
    assert "line 2 is not chained" in verify(uri)[0]


def test_a_manifest_rewritten_with_its_hash_breaks_the_chain_to_the_release(model):
    store, sha, uri = model
    log(store, sha, RELEASED)
    document = json.loads(store.get_bytes(f"{PREFIX}/manifest.json"))
    store.put_bytes(f"{PREFIX}/manifest.json", json.dumps({**document, "x": 1}).encode())
    assert "line 1 is not chained" in verify(uri)[0]


def test_written_once(model, tmp_path):
    store, _, _ = model
    other = tmp_path / "other"
    other.write_bytes(b"different")
    with pytest.raises(UserError, match="exists with other bytes"):
        put_once(store, f"{PREFIX}/model.gguf", other, sha256_file(other))
    with pytest.raises(UserError, match="exists with other content"):
        write_manifest(store, PREFIX, Manifest(files=[]))


def test_a_retry_may_write_the_same_again(model, tmp_path):
    store, sha, uri = model
    same = tmp_path / "model.gguf"
    put_once(store, f"{PREFIX}/model.gguf", same, sha256_file(same))
    files = [{"name": "model.gguf", "sha256": sha256_file(same), "bytes": 7}]
    assert write_manifest(store, PREFIX, Manifest(name="m", version="v1", files=files)) == sha
    assert verify(uri) == []


@pytest.mark.parametrize("uri", ["file:///x/manifest.json", "nonsense", "file:///models/a/b.json"])
def test_other_uris_are_refused(uri):
    with pytest.raises(UserError, match="is not the URI of a manifest"):
        verify(uri)


def test_no_release_yet(tmp_path):
    assert read_release(open_store(tmp_path.as_uri()), "m") is None


@pytest.mark.parametrize(
    ("code", "profile", "verdict"),
    [
        ({"commit": "abc", "dirty": False}, "production", "pass"),
        ({"commit": "abc", "dirty": True}, "production", "fail"),
        ({"commit": "abc", "dirty": True}, "laptop", "warn"),
        ({"commit": None, "dirty": None}, "production", "fail"),
        ({"commit": None, "dirty": None}, "laptop", "warn"),
    ],
)
def test_unversioned_or_dirty_code(code, profile, verdict):
    assert conclude(code_measurements(code, profile)) == verdict
