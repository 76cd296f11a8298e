"""The store behaves the same on a directory and on a real S3 server over HTTP."""

import base64
import hashlib
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.lab.s3_server import s3

from tuneline.config.governance import GovernanceConfig
from tuneline.errors import RetryableError, UserError
from tuneline.governance.release.manifest import lock_files
from tuneline.store import AlreadyThere, Changed, CorruptObject, NotThere, S3Store, open_store


@pytest.fixture
def store(any_store):
    return any_store


def _overwrite_behind_its_back(store, key, data):
    if isinstance(store, S3Store):
        head = store._s3.head_object(Bucket=store.bucket, Key=f"team/{key}")
        store._s3.put_object(
            Bucket=store.bucket, Key=f"team/{key}", Body=data, Metadata=head["Metadata"]
        )
    else:
        (store.root / key).write_bytes(data)


def test_what_is_written_is_read_back_with_its_hash(store, tmp_path):
    assert store.find("runs/a/x.bin") is None
    ref = store.put_bytes("runs/a/x.bin", b"hello")
    assert ref.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert ref.bytes == 5
    assert ref.uri == f"{store.uri}/runs/a/x.bin"
    assert store.get_bytes("runs/a/x.bin") == b"hello"
    assert store.get_file("runs/a/x.bin", tmp_path / "got").sha256 == ref.sha256
    assert store.key_of(ref.uri) == "runs/a/x.bin"
    assert store.find("runs/a/x.bin") == ref
    store.put_bytes("runs/a/x.bin", b"two")
    assert store.get_bytes("runs/a/x.bin") == b"two"


def test_a_file_that_nobody_changes_may_be_linked(store, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"hello")
    store.put_file("k", path, link=True)
    path.unlink()
    assert store.get_bytes("k") == b"hello"
    path.write_bytes(b"other")
    with pytest.raises(AlreadyThere):
        store.put_file("k", path, once=True, link=True)
    assert store.get_bytes("k") == b"hello"


def test_corruption_is_caught_on_read_and_leaves_no_file(store, tmp_path):
    store.put_bytes("k", b"good")
    # An expected hash wins over the stored one.
    with pytest.raises(CorruptObject):
        store.get_bytes("k", sha256="0" * 64)
    _overwrite_behind_its_back(store, "k", b"evil")
    with pytest.raises(CorruptObject, match="is corrupt"):
        store.get_file("k", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_write_once_is_written_once(store):
    store.put_bytes("manifest.json", b"1", once=True)
    with pytest.raises(AlreadyThere):
        store.put_bytes("manifest.json", b"2", once=True)
    assert store.get_bytes("manifest.json") == b"1"


def test_a_conditional_write_replaces_what_was_read(store):
    store.replace("k", b"one", None)
    read = store.read_tagged("k")
    assert read.data == b"one"
    store.replace("k", b"two", read.tag)
    assert store.get_bytes("k") == b"two"
    assert store.find("k").sha256 == hashlib.sha256(b"two").hexdigest()


def test_a_conditional_write_over_another_writers_bytes_is_refused(store):
    store.put_bytes("d/k", b"one")
    read = store.read_tagged("d/k")
    store.put_bytes("d/k", b"two")
    with pytest.raises(Changed, match="has changed since it was read"):
        store.replace("d/k", b"three", read.tag)
    with pytest.raises(Changed):
        store.replace("d/k", b"three", None)
    assert store.get_bytes("d/k") == b"two"
    store.delete_prefix("d")
    with pytest.raises(Changed):
        store.replace("d/k", b"three", read.tag)
    assert not store.exists("d/k")


@pytest.mark.parametrize("conditional", [True, False])
def test_racing_writers_have_one_winner(store, conditional):
    if conditional:
        store.put_bytes("k", b"start")
        tag = store.read_tagged("k").tag
    won, lost = [], []

    def write(text):
        try:
            store.replace("k", text, tag) if conditional else store.put_bytes("k", text, once=True)
            won.append(text)
        except (Changed, AlreadyThere):
            lost.append(text)

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert store.get_bytes("k") == won[0]


def test_a_write_whose_answer_was_lost_is_not_taken_for_another_writers(monkeypatch):
    """boto3 sends it again, and the second try meets the first one's bytes."""
    with s3(monkeypatch, "shared"):
        store = open_store("s3://shared/team")
        store.put_bytes("k", b"one")
        tag = store.read_tagged("k").tag
        send = store._s3.put_object

        def lost_answer(**request):
            send(**request)
            return send(**request)

        monkeypatch.setattr(store._s3, "put_object", lost_answer)
        store.replace("k", b"two", tag)
        assert store.get_bytes("k") == b"two"


def test_a_hash_is_recomputed_where_the_bytes_lie(store):
    written = store.put_bytes("k", b"good")
    assert store.rehash("k") == written
    _overwrite_behind_its_back(store, "k", b"evil")
    with pytest.raises(CorruptObject, match="is corrupt"):
        store.rehash("k")
    with pytest.raises(CorruptObject, match="is corrupt"):
        store.read_tagged("k")
    with pytest.raises(NotThere):
        store.rehash("nothing")
    with pytest.raises(NotThere):
        store.read_tagged("nothing")


def test_keys_and_delete_prefix_stop_at_path_boundaries(store):
    for key in ("runs/a/1", "runs/a/b/2", "runs/ab/3"):
        store.put_bytes(key, b"x")
    assert sorted(store.keys("runs/a")) == ["runs/a/1", "runs/a/b/2"]
    store.delete_prefix("runs/a")
    assert not store.exists("runs/a/1")
    assert store.exists("runs/ab/3")


def test_missing_object_says_so(store):
    assert not store.exists("nothing")
    with pytest.raises(NotThere, match="does not exist"):
        store.get_bytes("nothing")


def test_a_large_object_goes_in_parts(store, monkeypatch):
    monkeypatch.setattr(S3Store, "MULTIPART_BYTES", 5 << 20)
    data = bytes(range(256)) * (12 << 12)
    store.put_bytes("large", data)
    assert store.get_bytes("large") == data
    with pytest.raises(AlreadyThere):
        store.put_bytes("large", data + b"x", once=True)
    assert store.get_bytes("large") == data


def test_the_server_is_told_again_what_it_checked_of_each_part(monkeypatch):
    monkeypatch.setattr(S3Store, "MULTIPART_BYTES", 5 << 20)
    told = []
    with s3(monkeypatch, "shared"):
        store = open_store("s3://shared/team")
        store._s3.meta.events.register(
            "before-parameter-build.s3.CompleteMultipartUpload",
            lambda params, **_: told.extend(params["MultipartUpload"]["Parts"]),
        )
        store.put_bytes("large", b"x" * (6 << 20))
    assert [part["PartNumber"] for part in told] == [1, 2]
    assert all(part["ETag"] and part["ChecksumSHA256"] for part in told)


def test_crash_between_the_renames_leaves_an_object_that_verifies(tmp_path, monkeypatch):
    store = open_store(tmp_path.as_uri())
    store.put_bytes("k", b"old")

    real = Path.replace

    def crash(self, target):
        if Path(target).name == "k":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put_bytes("k", b"new")
    monkeypatch.undo()
    assert store.get_bytes("k") == b"old"


@pytest.mark.parametrize(
    ("call", "write"),
    [
        ("shutil.copyfile", lambda store, path: store.put_file("k", path)),
        ("pathlib.Path.write_bytes", lambda store, path: store.put_bytes("k", b"new")),
    ],
)
def test_full_disk_is_one_sentence_and_worth_a_retry(tmp_path, monkeypatch, call, write):
    root, new = tmp_path / "store", tmp_path / "new"
    new.write_bytes(b"new")
    store = open_store(root.as_uri())
    store.put_bytes("k", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(RetryableError, match="No space left on device"):
        write(store, new)
    monkeypatch.undo()
    assert store.get_bytes("k") == b"old"
    assert [p.name for p in root.iterdir() if p.name not in ("k", ".k.sha256", ".lock")] == []


@pytest.mark.parametrize("uri", ["", "/tmp/x", "file://host/x", "gs://b/x", "s3://"])
def test_other_uris_are_refused(uri):
    with pytest.raises(UserError, match="is not a store"):
        open_store(uri)


BAD_KEYS = ("", "../x", "/etc/passwd", "a/../../b", "a/..", "a//b", "./a", "a\\b", "a\0b", "a/")


def test_keys_cannot_leave_the_store(store, tmp_path):
    """Whatever is asked of them; a bucket would keep such a key as it is."""
    for key in BAD_KEYS:
        for ask in (
            lambda key: store.put_bytes(key, b"x"),
            lambda key: store.put_file(key, Path(__file__), once=True),
            lambda key: store.replace(key, b"x", None),
            lambda key: store.get_file(key, tmp_path / "got"),
            store.get_bytes,
            store.rehash,
            store.read_tagged,
            store.find,
            store.exists,
        ):
            with pytest.raises(UserError, match="is not a key"):
                ask(key)
    with pytest.raises(UserError, match="is not a key"):
        store.delete_prefix("a/..")
    assert list(store.keys("")) == []
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_directory_is_its_owners_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = open_store((tmp_path / "new" / "store").as_uri())
        path = tmp_path / "rows.jsonl"
        path.write_text("name and address of a person")
        store.put_file("runs/r/quarantine/schema_validation/rows.jsonl", path)
        store.put_bytes("logs/a/2026-11-25/part.json", b"{}")
        store.replace("models/m/production.json", b"{}", None)
        store.get_file("models/m/production.json", tmp_path / "got")
    finally:
        os.umask(before)
    found = [store.root, *store.root.rglob("*"), tmp_path / "got"]
    open_to_others = [p for p in found if p.stat().st_mode & 0o077 and p.name != ".lock"]
    assert open_to_others == []
    assert len(found) > 10


def test_unknown_bucket_is_the_users_error(monkeypatch):
    unknown = pytest.raises(UserError, match="bucket nobody-made-it does not exist")
    with s3(monkeypatch), unknown:
        open_store("s3://nobody-made-it/x").put_bytes("k", b"x")


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


def test_a_listing_is_read_page_by_page_and_states_size_and_time(store, monkeypatch):
    began = datetime.now(UTC) - timedelta(seconds=2)
    for number in range(5):
        store.put_bytes(f"runs/a/{number}", b"x" * number)
    assert [(e.key, e.bytes) for e in store.entries("runs")] == [
        (f"runs/a/{n}", n) for n in range(5)
    ]
    assert all(began < entry.modified for entry in store.entries("runs"))
    if isinstance(store, S3Store):
        asked = []
        store._s3.meta.events.register(
            "before-parameter-build.s3.ListObjectsV2",
            lambda params, **_: asked.append(params.setdefault("MaxKeys", 2)),
        )
        assert next(store.entries("runs")).key == "runs/a/0"
        assert asked == [2]
    store.delete(f"runs/a/{number}" for number in (0, 2, 2, 7))
    assert list(store.keys("runs")) == ["runs/a/1", "runs/a/3", "runs/a/4"]
    store.delete(store.keys("runs"))
    assert list(store.entries("runs")) == []


def test_an_object_that_the_server_does_not_delete_is_an_error(monkeypatch):
    with s3(monkeypatch, "shared"):
        store = open_store("s3://shared/team")
        store.put_bytes("a", b"x")
        refusal = {"Errors": [{"Key": "team/a", "Code": "AccessDenied", "Message": "locked"}]}
        monkeypatch.setattr(store._s3, "delete_objects", lambda **_: refusal)
        with pytest.raises(UserError, match="team/a can't be deleted from shared: locked"):
            store.delete(["a"])
