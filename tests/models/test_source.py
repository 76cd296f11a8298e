"""Files of a model at its origin, one by one."""

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneline.errors import RetryableError
from tuneline.models.origins import HubSource, at_once

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
