"""Objects in a bucket carry a checksum of the server's, and are locked where the bucket can."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from tests.lab.s3_server import s3

from tuneline.config.governance import GovernanceConfig
from tuneline.governance.release.manifest import lock_files
from tuneline.store import open_store


@pytest.fixture
def locking(monkeypatch):
    """A store in a bucket with Object Lock, a client for it, and a store in one without."""
    with s3(monkeypatch, "plain") as (client, _):
        client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        yield open_store("s3://locked/team"), client, open_store("s3://plain/team")


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_files_of_a_release_are_locked(locking, mode):
    store, client, _ = locking
    store.put_bytes("models/m/1/model.gguf", b"weights", once=True)
    config = GovernanceConfig(lock_days=30, lock_mode=mode)
    (free,) = lock_files(store, ["models/m/1/model.gguf"], config)
    assert (free.name, free.value, free.ok) == ("files_not_locked", 0, True)
    head = client.head_object(Bucket="locked", Key="team/models/m/1/model.gguf")
    assert head["ObjectLockMode"] == mode.upper()
    left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)


def test_a_store_that_locks_nothing_warns_who_asks_for_it(locking, tmp_path):
    _, _, plain = locking
    for store in (plain, open_store(tmp_path.as_uri())):
        store.put_bytes("k", b"weights")
        (free,) = lock_files(store, ["k"], GovernanceConfig(lock_days=30))
        assert (free.value, free.ok, free.on_breach) == (1, False, "warn")
        assert lock_files(store, ["k"], GovernanceConfig()) == []


def test_the_server_is_told_the_hash_of_what_it_gets(locking):
    store, _, _ = locking
    store.put_bytes("k", b"weights")
    expected = base64.b64encode(hashlib.sha256(b"weights").digest()).decode()
    sent = []
    store._s3.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
    )
    store.replace("k", b"weights", store.read_tagged("k").tag)
    assert str(sent[0]["x-amz-checksum-sha256"], "ascii") == expected
