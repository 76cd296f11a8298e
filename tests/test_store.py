"""The store behaves the same on a directory and on a real S3 server over HTTP."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from tests.lab.s3_server import s3

from tuneline.errors import RetryableError, UserError
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
    assert not store.exists("runs/a/x.bin")
    assert store.find("runs/a/x.bin") is None
    with pytest.raises(NotThere, match="does not exist"):
        store.get_bytes("runs/a/x.bin")
    store.put_bytes("runs/a/x.bin", b"older")
    ref = store.put_bytes("runs/a/x.bin", b"hello")
    assert store.find("runs/a/x.bin") == ref
    assert ref.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert ref.bytes == 5
    assert ref.uri == f"{store.uri}/runs/a/x.bin"
    assert store.get_bytes("runs/a/x.bin") == b"hello"
    assert store.get_file("runs/a/x.bin", tmp_path / "got").sha256 == ref.sha256
    assert store.key_of(ref.uri) == "runs/a/x.bin"
    with pytest.raises(CorruptObject):
        store.get_bytes("runs/a/x.bin", sha256="0" * 64)


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
    _overwrite_behind_its_back(store, "k", b"evil")
    with pytest.raises(CorruptObject, match="is corrupt"):
        store.get_file("k", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_write_once_is_written_once(store):
    store.put_bytes("manifest.json", b"1", once=True)
    with pytest.raises(AlreadyThere):
        store.put_bytes("manifest.json", b"2", once=True)
    assert store.get_bytes("manifest.json") == b"1"


@pytest.mark.parametrize("conditional", [False, True])
def test_a_write_has_one_winner_among_racing_writers(store, conditional):
    won, lost = [], []
    if conditional:
        store.put_bytes("k", b"start")
    tag = store.read_tagged("k").tag if conditional else None

    def write(text):
        try:
            if conditional:
                store.replace("k", text, tag)
            else:
                store.put_bytes("k", text, once=True)
            won.append(text)
        except (AlreadyThere, Changed):
            lost.append(text)

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert store.get_bytes("k") == won[0]


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
