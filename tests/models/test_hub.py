"""Base models from a hub: the real client against a small server that speaks its routes."""

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.lab.hub_server import COMMIT, in_a_process
from tests.lab.hub_server import hub as hub_of

from tuneline.errors import RetryableError
from tuneline.models.origins import HubSource, at_once


@pytest.fixture
def hub(tiny):
    """The URL of a hub that has the tiny model as org/tiny."""
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    card = {"README.md": b"---\nlicense: mit\n---\n", "pytorch_model.bin": b"pickle"}
    with hub_of("models", "org/tiny", files | card) as url:
        yield url


def resolve(uri, cache, **environment):
    return in_a_process(
        "from dataclasses import asdict; from tuneline.models import resolve",
        "asdict(resolve(sys.argv[1], Path(sys.argv[2]), lambda line: None))",
        uri,
        str(cache),
        home=cache / "hf",
        **environment,
    )


def test_a_branch_is_recorded_as_its_commit(hub, tmp_path):
    found = resolve("hf://org/tiny@main", tmp_path, HF_ENDPOINT=hub)
    assert found["revision"] == COMMIT
    assert found["license"] == "MIT"
    assert "pytorch_model.bin" not in found["files"]
    # The commit itself is the same entry, and needs no network any more.
    again = resolve(f"hf://org/tiny@{COMMIT}", tmp_path, HF_HUB_OFFLINE="1")
    assert again["digest"] == found["digest"]


def test_what_the_hub_does_not_know(hub, tmp_path):
    found = resolve("hf://org/tiny@nope", tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert "no such revision" in found["error"]
    found = resolve("hf://org/other@main", tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert "no such repository" in found["error"]


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    # Nothing listens on the discard port, so the client's own HTTP error comes through.
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for revision, surroundings in (
        ("main", unreachable),
        (COMMIT, unreachable),
        (COMMIT, {"HF_HUB_OFFLINE": "1"}),
    ):
        found = resolve(f"hf://org/tiny@{revision}", tmp_path, **surroundings)
        assert found["kind"] == "RetryableError"
        assert "the hub can't be reached" in found["error"]
        assert "give a directory or s3:// instead" in found["error"]


@pytest.mark.parametrize(("sent", "whole"), [(b"weights", True), (b"weightz", False)])
def test_a_large_file_is_compared_with_the_hash_that_the_hub_states(
    monkeypatch, tmp_path, sent, whole
):
    def download(_repository, name, *, revision, local_dir):
        assert revision == COMMIT
        (Path(local_dir) / name).write_bytes(sent)

    lfs = SimpleNamespace(sha256=sha256(b"weights").hexdigest())
    files = [SimpleNamespace(rfilename="model.safetensors", size=7, lfs=lfs)]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=files)
    )
    source = HubSource("hf://org/name@" + COMMIT, "org/name@" + COMMIT, print)
    assert source.sizes() == {"model.safetensors": 7}
    if whole:
        source.fetch("model.safetensors", tmp_path)
        assert (tmp_path / "model.safetensors").read_bytes() == sent
    else:
        with pytest.raises(RetryableError, match="has other bytes than the hub states"):
            source.fetch("model.safetensors", tmp_path)
        assert not (tmp_path / "model.safetensors").exists()


def test_the_first_error_of_several_transfers_is_raised():
    def transfer(name):
        if name == "b":
            raise RetryableError("b broke")

    with pytest.raises(RetryableError, match="b broke"):
        at_once(transfer, ["a", "b", "c"])
