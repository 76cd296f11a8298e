"""Stores under injected errors, resets, lost answers, a kill in an upload, and power cuts."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from tests.lab.canaries import release
from tests.lab.faulty_s3 import FAULTS, faulty
from tests.lab.power_cut import Disk, restored
from tests.lab.runs import Lab
from tests.lab.s3_server import s3

from tuneline.artifacts.governance import Manifest
from tuneline.artifacts.releases import read_release
from tuneline.errors import RetryableError, UserError
from tuneline.evidence import load_evidence
from tuneline.governance.release.manifest import write_manifest
from tuneline.governance.release.rollback import roll_back
from tuneline.governance.release.verify import verify
from tuneline.store import AlreadyThere, Changed, CorruptObject, NotThere, S3Store, open_store

PART = 5 << 20
LARGE = os.urandom(1 << 16) * 100


@pytest.fixture
def shaky(monkeypatch):
    """A store behind the proxy, the proxy's rules, and a client that goes past it."""
    with (
        s3(monkeypatch, "shared") as (client, _),
        faulty(os.environ["AWS_ENDPOINT_URL"], 7) as (address, rules),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(S3Store, "MULTIPART_BYTES", PART)
        # Tries follow each other at once.
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", _now)
        monkeypatch.setattr("tuneline.store.bucket._WAITS_S", (0, 0, 0))
        yield open_store("s3://shared/team"), rules, client


def _now(self, context):
    return 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", ["whole", "in parts"])
def test_one_fault_anywhere_in_a_write_or_read_is_survived(shaky, fault, size):
    store, rules, _ = shaky
    data = b"weights" if size == "whole" else LARGE
    requests = 1 if size == "whole" else 4
    for number in range(requests):
        rules.script = [""] * number + [fault]
        store.put_bytes(f"models/{number}", data)
        rules.script = [fault]
        assert store.get_bytes(f"models/{number}") == data
    assert rules.injected.count(fault) == 2 * requests


def test_whatever_fails_an_object_is_whole_or_not_there(shaky):
    store, rules, _ = shaky
    before = {f"k{n}": b"before %d" % n for n in range(20)}
    for key, data in before.items():
        store.put_bytes(key, data)
    rules.share, written = 0.8, {}
    for number, key in enumerate(before):
        data = b"after %d " % number * 1000 if number % 5 else LARGE
        with contextlib.suppress(RetryableError):
            store.put_bytes(key, data)
            written[key] = data
    rules.share = 0.0
    assert set(FAULTS) == set(rules.injected)
    assert 0 < len(written) < len(before)
    for number, (key, data) in enumerate(before.items()):
        after = b"after %d " % number * 1000 if number % 5 else LARGE
        there = store.get_bytes(key)
        assert there == written[key] if key in written else there in (data, after)


def test_a_write_once_whose_answer_was_lost_counts_for_its_own_bytes_alone(shaky):
    store, rules, _ = shaky
    rules.script = ["answer lost"]
    manifest = Manifest(name="m", version="1", files=[])
    digest = write_manifest(store, "models/m/1", manifest)
    assert store.find("models/m/1/manifest.json").sha256 == digest
    with pytest.raises(UserError, match="written once"):
        write_manifest(store, "models/m/1", manifest.model_copy(update={"reason": "another"}))


@pytest.mark.parametrize("what", ["manifest", "pointer"])
def test_concurrent_writers_over_a_bad_network_have_one_winner(shaky, what):
    store, rules, _ = shaky
    store.put_bytes("production.json", b"start")
    tag, rules.share, outcomes = store.read_tagged("production.json").tag, 0.2, {}
    # Made here, since boto3's clients are not made in several threads at once.
    stores = [open_store("s3://shared/team") for _ in range(8)]

    def write(number):
        for _ in range(10):
            # As Airflow does: again after what may pass, not after a refusal.
            with contextlib.suppress(RetryableError):
                try:
                    if what == "manifest":
                        manifest = Manifest(name="m", version="1", reason=str(number), files=[])
                        outcomes[number] = write_manifest(stores[number], "models/m/1", manifest)
                    else:
                        stores[number].replace("production.json", b"%d" % number, tag)
                        outcomes[number] = hashlib.sha256(b"%d" % number).hexdigest()
                except (UserError, Changed):
                    outcomes[number] = None
                return

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rules.share = 0.0
    (winner,) = filter(None, outcomes.values())
    assert len(outcomes) == 8
    key = "models/m/1/manifest.json" if what == "manifest" else "production.json"
    assert store.rehash(key).sha256 == winner


_UPLOAD = """
import sys
from pathlib import Path
from tuneline.store import S3Store, open_store
S3Store.MULTIPART_BYTES = int(sys.argv[1])
open_store("s3://shared/team").put_file("models/m/1/model.gguf", Path(sys.argv[2]), once=True)
"""


def test_a_process_killed_during_an_upload_leaves_no_object(shaky, tmp_path):
    store, rules, client = shaky
    path = tmp_path / "model.gguf"
    path.write_bytes(LARGE)
    rules.hold_parts.set()
    process = subprocess.Popen([sys.executable, "-c", _UPLOAD, str(PART), str(path)])
    assert rules.part_came.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rules.hold_parts.clear()
    rules.release.set()
    assert client.list_multipart_uploads(Bucket="shared")["Uploads"]
    assert not store.exists("models/m/1/model.gguf")
    assert list(store.keys("models")) == []
    # A manifest that names it is no release, and the next try writes it.
    ref = {"name": "model.gguf", "sha256": "0" * 64, "bytes": len(LARGE)}
    write_manifest(store, "models/m/1", Manifest(name="m", version="1", files=[ref]))
    assert any("model.gguf" in line for line in verify("s3://shared/team/models/m/1/manifest.json"))
    store.put_file("models/m/1/model.gguf", path, once=True)
    assert store.get_bytes("models/m/1/model.gguf") == LARGE
    with pytest.raises(AlreadyThere):
        store.put_bytes("models/m/1/model.gguf", b"another", once=True)


def test_a_power_cut_at_any_moment_leaves_pointers_manifests_and_logs_whole(tmp_path, monkeypatch):
    store = open_store((tmp_path / "store").as_uri())
    disk = Disk(store.root, monkeypatch)
    for version in "ab":
        release(store, "m", version, settings={"governance": {}})
    roll_back(store, "m", None, by="bob", reason="too slow")
    cuts = [*disk.cuts, disk.after_cut(), disk.after_cut(names_lost=True)]
    for number, cut in enumerate(cuts):
        left = open_store(restored(cut, tmp_path / str(number)).as_uri())
        for key in left.keys("models"):
            if not key.endswith("/config.json"):
                assert left.get_bytes(key), key
            # A file of a version outlasts it as soon as its manifest is there.
            elif left.exists(key.replace("config", "manifest")):
                assert left.get_bytes(key) == b'{"governance": {}}'
    for cut in ("-1", "-2"):
        left = open_store((tmp_path / str(len(cuts) + int(cut))).as_uri())
        assert read_release(left, "m").version == "a"
        for version in "ab":
            assert verify(left.uri_of(f"models/m/{version}/manifest.json")) == []


def test_evidence_that_outlasts_a_power_cut_has_its_files(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {})
    disk = Disk(lab.run.store.root, monkeypatch)
    lab.leave("schema_validation", {"rows.parquet": b"rows", "quarantine/rows.jsonl": b"raw"}, [])
    evidence = lab.run.step_key("schema_validation", "evidence.json")
    kept = []
    for number, cut in enumerate([*disk.cuts, disk.after_cut(names_lost=True)]):
        left = open_store(restored(cut, tmp_path / "cuts" / str(number)).as_uri())
        # Amid its own writing it is missing or corrupt, and the step is carried out again.
        with contextlib.suppress(CorruptObject, NotThere):
            kept.append(load_evidence(left.get_bytes(evidence), evidence))
            for ref in kept[-1].artifacts:
                path = left.root / lab.run.store.key_of(ref.uri)
                assert hashlib.sha256(path.read_bytes()).hexdigest() == ref.sha256
    assert len(kept) > 1
