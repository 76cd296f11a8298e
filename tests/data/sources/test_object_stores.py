"""gs://, az:// and abfs:// through fsspec, with its file system in memory in place of a server."""

import json
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.lab.data_runs import clean_rows

from tuneline.config import DataConfig
from tuneline.data.sources import object_stores
from tuneline.data.sources.find_files import find_files, find_here
from tuneline.data.sources.records import open_files
from tuneline.errors import RetryableError, UserError

SECRET = "hunter2secret"
ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in clean_rows(5))


class Memory(MemoryFileSystem):
    """A bucket whose objects have generations; `fault` is raised by every call."""

    fault = None
    store, pseudo_dirs = {}, [""]

    def info(self, path, **kwargs):
        if self.fault:
            raise self.fault
        return {**super().info(path), "generation": "17"}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "memory://")).lstrip("/")


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(object_stores, "by_connection", lambda scheme: Memory())
    for key in ("in/a.jsonl", "in/b.txt", "c.jsonl"):
        with Memory().open(f"data/{key}", "wb") as out:
            out.write(ROWS)
    yield
    Memory.store.clear()


def read(tmp_path, source):
    opened = open_files(DataConfig(source=source), tmp_path / "scratch")
    return [(one.file.name, one.snapshot.version, len(list(one.records()))) for one in opened]


def test_objects_have_a_version(bucket, tmp_path):
    assert read(tmp_path, "gs://data/in") == [("gs://data/in/a.jsonl", "etag:17", 5)]
    assert [f.name for f in find_files(["gs://data/*.jsonl"])] == ["gs://data/c.jsonl"]
    assert not list(tmp_path.glob("scratch/*"))


class Refusal(Exception):
    def __init__(self, **fields):
        super().__init__(f"key={SECRET}\nmore")
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (FileNotFoundError(SECRET), UserError, "does not exist"),
        (Refusal(code=404), UserError, "does not exist"),
        (Refusal(code=403), UserError, "access denied .*set GOOGLE_APPL"),
        (Refusal(status_code=401), UserError, "access denied"),
        (PermissionError(SECRET), UserError, "access denied"),
        (ValueError(SECRET), UserError, "access denied .ValueError"),
        (Refusal(code=503), RetryableError, "gs://data/c.jsonl: the server failed .503"),
        (ConnectionError(SECRET), RetryableError, "the server failed .ConnectionError"),
    ],
)
def test_what_a_server_refuses_is_one_sentence(bucket, tmp_path, monkeypatch, fault, kind, words):
    monkeypatch.setattr(Memory, "fault", fault)
    with pytest.raises(kind, match=words) as caught:
        read(tmp_path, "gs://data/c.jsonl")
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("az", "azure"), ("abfs", "azure")])
def test_a_package_that_is_not_installed_is_named(scheme, extra, tmp_path, monkeypatch):
    # As in an environment without it, whatever this one has.
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{scheme}://data needs .* install tuneline\[{extra}\]"):
        read(tmp_path, f"{scheme}://data/x.jsonl")
    assert find_here([f"{scheme}://data/x.jsonl"]) == []
    with pytest.raises(UserError, match=f"names no bucket; write {scheme}://bucket/key"):
        find_here([f"{scheme}:///x.jsonl"])
