"""The commands of docs/upkeep.md back up a store and a ledger in use, and restore them."""

import os
import re
import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.lab import postgres
from tests.lab.releases import log_release
from tests.lab.s3_server import s3

from tuneline.artifacts.governance import DatasetFile, Manifest
from tuneline.artifacts.releases import read_release
from tuneline.cli import main
from tuneline.governance.release.manifest import write_manifest
from tuneline.store import open_store

PAGE = (Path(__file__).parents[3] / "docs" / "upkeep.md").read_text()


def commands(title):
    """The commands of the block that a comment names."""
    (found,) = re.findall(rf"```bash\n# {title}\n(.*?)```", PAGE, re.DOTALL)
    return found


def carry_out(script, **where):
    environment = {**os.environ, **{name: str(value) for name, value in where.items()}}
    # Two blocks may be pasted into one shell.
    subprocess.run(["bash", "-euc", script], env=environment, check=True)


def release(store, number):
    """Release a version with a weight and a dataset."""
    version = f"v{number}"
    data = store.put_bytes(f"runs/{version}/data/x/dataset.parquet", version.encode() * 99)
    weight = store.put_bytes(f"models/m/{version}/model.gguf", version.encode() * 9999)
    stated = [{"name": "model.gguf", "sha256": weight.sha256, "bytes": weight.bytes}]
    file = DatasetFile(key=store.key_of(data.uri), sha256=data.sha256, bytes=data.bytes)
    manifest = Manifest(name="m", version=version, dataset_file=file, files=stated)
    digest = write_manifest(store, f"models/m/{version}", manifest)
    log_release(store, "m", version, digest)


@contextmanager
def in_use(gateway, store):
    """Requests, and steps of runs that write to the store; releases come in between."""
    over, asked = threading.Event(), []

    def go_on():
        while not over.is_set():
            asked.append(gateway.chat().status_code)
            store.put_bytes(f"runs/busy/data/{len(asked)}.json", b"{}")
            store.put_bytes("runs/busy/progress/train/line.json", b"%d" % len(asked))

    for number in (1, 2):
        release(store, number)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def check(store, start, small, key, ledger):
    """What is restored verifies, and a gateway goes on with keys and ledger."""
    pointer = read_release(store, "m")
    assert pointer.version == "v2"
    for version in ("v1", "v2"):
        assert main(["verify", store.uri_of(f"models/m/{version}/manifest.json")]) == 0
    release(store, 3)
    gateway = start(small, **ledger)
    gateway.wait_all_ready()
    assert gateway.with_key(key).chat().status_code == 200
    return gateway


def test_a_folder_and_sqlite(calm, start, small, tmp_path):
    folder, serving, backup = tmp_path / "store", tmp_path / "serving", tmp_path / "backup"
    store = open_store(folder.as_uri())
    gateway = calm(small)
    backup.mkdir()
    # Where the page has it.
    serving.mkdir()
    for name, link in (("usage.db", "usage.sqlite"), ("keys.json", "keys.json")):
        (serving / link).symlink_to(tmp_path / name)
    where = {"STORE": folder, "SERVING": serving, "BACKUP": backup}
    with in_use(gateway, store) as asked:
        before = len(asked)
        carry_out(commands("backup: folder"), **where)
        release(store, 9)
    gateway.stop()
    assert set(asked) == {200}
    assert main(["verify", store.uri_of("models/m/v9/manifest.json")]) == 0
    for gone in (folder, serving):
        shutil.rmtree(gone)
    (tmp_path / "keys.json").unlink()
    for left in tmp_path.glob("usage.db*"):
        left.unlink()
    carry_out(commands("restore: folder"), **where)
    with closing(sqlite3.connect(serving / "usage.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM usage").fetchone()[0] >= before
    shutil.copy(serving / "keys.json", tmp_path / "keys.json")
    ledger = {"path": str(serving / "usage.sqlite"), "flush_interval_s": 0.02}
    check(store, start, small, gateway.key, {"ledger": ledger})


@pytest.mark.skipif(postgres.why_not() is not None, reason=str(postgres.why_not()))
def test_a_bucket_and_postgresql(calm, start, small, tmp_path, monkeypatch):
    server = postgres.PostgresServer()
    serving, backup = tmp_path, tmp_path / "backup"
    backup.mkdir()
    try:
        with s3(monkeypatch, "prod", "copies") as (client, _):
            store = open_store("s3://prod/team")
            ledger = {"url": server.url, "flush_interval_s": 0.02}
            gateway = calm(small, ledger=ledger)
            where = {"STORE": store.uri, "COPY": "s3://copies/team", "SERVING": serving}
            where |= {"BACKUP": backup, "LEDGER": server.url}
            with in_use(gateway, store) as asked:
                carry_out(commands("backup: bucket"), **where)
                release(store, 9)
            gateway.stop()
            assert set(asked) == {200}
            for key in [*store.keys("")]:
                client.delete_object(Bucket="prod", Key=f"team/{key}")
            (tmp_path / "keys.json").unlink()
            where["LEDGER"] = server.create("fresh")
            (names,) = re.findall(r"^released=.*$", commands("backup: bucket"), re.MULTILINE)
            carry_out(f"{names}\n{commands('restore: bucket')}", **where)
            check(store, start, small, gateway.key, {"ledger": ledger | {"url": where["LEDGER"]}})
    finally:
        server.remove()
