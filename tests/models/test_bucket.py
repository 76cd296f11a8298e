"""Base models in a bucket, on a real S3-speaking server."""

import shutil

import pytest
from tests.lab import s3_server

from tuneline.errors import RetryableError, UserError
from tuneline.models import resolve


@pytest.fixture
def s3(monkeypatch):
    with s3_server.s3(monkeypatch, "models") as served:
        yield served


def upload(client, directory, prefix="team/tiny"):
    for path in directory.iterdir():
        client.upload_file(str(path), "models", f"{prefix}/{path.name}")


def test_a_model_is_fetched_once_and_again_when_it_changes(s3, tiny, tmp_path):
    client, _ = s3
    upload(client, tiny)
    client.put_object(Bucket="models", Key="team/tiny/pytorch_model.bin", Body=b"pickle")
    client.put_object(Bucket="models", Key="team/tiny/onnx/model.json", Body=b"{}")
    client.put_object(Bucket="models", Key="team/tiny2/config.json", Body=b"{}")
    lines = []
    first = resolve("s3://models/team/tiny/", tmp_path, lines.append)
    assert first.digest == resolve(str(tiny), tmp_path).digest
    assert not list(first.path.glob("*.bin"))
    assert resolve("s3://models/team/tiny/", tmp_path, lines.append) == first
    assert len(lines) == 1
    card = b"---\nlicense: apache-2.0\n---\n"
    client.put_object(Bucket="models", Key="team/tiny/README.md", Body=card)
    second = resolve("s3://models/team/tiny", tmp_path, lines.append)
    assert second.digest != first.digest
    assert second.license == "Apache-2.0"
    assert len(lines) == 2


def test_an_incomplete_prefix_is_refused_and_not_kept(s3, tiny, tmp_path):
    client, _ = s3
    part = shutil.copytree(tiny, tmp_path / "part")
    (part / "tokenizer.json").unlink()
    upload(client, part)
    with pytest.raises(UserError, match=r"lacks tokenizer\.json"):
        resolve("s3://models/team/tiny", tmp_path / "cache", print)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_server_that_is_gone_may_be_tried_again(s3, tmp_path, monkeypatch):
    _, server = s3
    server.stop()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(RetryableError, match="S3 failed"):
        resolve("s3://models/team/tiny", tmp_path)


def test_what_is_not_there_and_no_credentials(s3, tmp_path, monkeypatch):
    for uri in ("s3://models/nothing/here", "s3://no-such-bucket/x"):
        with pytest.raises(UserError, match="base model"):
            resolve(uri, tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(UserError, match="set AWS_ACCESS_KEY_ID"):
        resolve("s3://models/team/tiny", tmp_path)
