"""gs:// and az:// through their own packages, against emulators of the real servers."""

import json
import socket
import subprocess
import uuid

import pytest
from tests.lab.data_runs import clean_rows
from tests.lab.extras import azurite, packages
from tests.lab.http_server import Handler, serving
from tests.lab.waiting import wait_for

from tuneline.config import DataConfig
from tuneline.data.sources.find_files import dataset_version
from tuneline.data.sources.records import open_files
from tuneline.errors import UserError
from tuneline.serving.processes import free_port

pytestmark = pytest.mark.long
ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in clean_rows(5))
KEYS = ["in/a.jsonl", "in/deep/b.jsonl", "in/README.md", "other.jsonl"]
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module", autouse=True)
def installed():
    with packages("gcs", "azure", "gcp-storage-emulator"):
        yield


def read(tmp_path, source):
    """Name and version of each file, and the number of its records."""
    return {
        opened.file.name: (opened.snapshot.version, len(list(opened.records())))
        for opened in open_files(DataConfig(source=source), tmp_path / "scratch")
    }


@pytest.fixture(params=["gs", "az", "abfs"])
def bucket(request, monkeypatch):
    """The address of a bucket with four objects, and a writer of objects."""
    if request.param == "gs":
        from gcp_storage_emulator.server import create_server
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        server = create_server("127.0.0.1", 0, in_memory=True)
        server.start()
        host, port = server._api._httpd.server_address
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        client = storage.Client(project="test", credentials=AnonymousCredentials())
        there = client.create_bucket("data")

        def put(key, data):
            there.blob(key).upload_from_string(data)

        yield "gs://data", put
        server.stop()
        return
    from azure.storage.blob import BlobServiceClient

    place = request.getfixturevalue("azure_server")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", place)
    name = f"data{uuid.uuid4().hex[:8]}"
    container = BlobServiceClient.from_connection_string(place).create_container(name)
    yield (
        f"{request.param}://{name}",
        lambda key, data: container.upload_blob(key, data, overwrite=True),
    )


@pytest.fixture(scope="module")
def azure_server(tmp_path_factory):
    """The connection string of an emulator."""
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    options = ["--blobPort", str(port), "--location", str(folder), "--skipApiVersionCheck"]
    process = subprocess.Popen(
        [azurite(), *options, "--silent", "--disableTelemetry"], stdout=subprocess.DEVNULL
    )

    def answers():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers)
    yield (
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    )
    process.terminate()
    process.wait()


def test_objects_folders_and_globs(bucket, tmp_path):
    address, put = bucket
    for key in KEYS:
        put(key, ROWS)
    for rest, keys in {
        "/in/a.jsonl": ["in/a.jsonl"],
        "/in": ["in/a.jsonl", "in/deep/b.jsonl"],
        "/in/*.jsonl": ["in/a.jsonl"],
        "/**/*.jsonl": ["in/a.jsonl", "in/deep/b.jsonl", "other.jsonl"],
        "": ["in/a.jsonl", "in/deep/b.jsonl", "other.jsonl"],
    }.items():
        found = read(tmp_path, f"{address}{rest}")
        assert {name: count for name, (_, count) in found.items()} == {
            f"{address}/{key}": 5 for key in keys
        }
        assert all(version.startswith("etag:") for version, _ in found.values())
    first = dataset_version([f"{address}/in"]).files
    put("in/a.jsonl", ROWS + ROWS)
    second = dataset_version([f"{address}/in"]).files
    changed = [name for name in first if first[name] != second[name]]
    assert changed == [f"{address}/in/a.jsonl"]
    for rest in ("/none.jsonl", "/in/*.csv", "/none"):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path, f"{address}{rest}")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path, f"{address}none/x.jsonl")


def test_wrong_keys_of_azure(azure_server, tmp_path, monkeypatch):
    wrong = KEY.replace("E", "F", 1)
    for stated, words in {
        azure_server.replace(KEY, wrong): "access denied .*set AZURE_STO",
        azure_server.replace(KEY, "!!"): "access denied",
        f"AccountKey={wrong}": "access denied",
        "": "access denied",
    }.items():
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", stated)
        with pytest.raises(UserError, match=words) as caught:
            read(tmp_path, "az://data/in/a.jsonl")
        assert wrong[:20] not in str(caught.value)


def test_google_refuses(tmp_path, monkeypatch):
    class Refusing(Handler):
        def do_GET(self):
            self.answer(b'{"error": {"code": 401, "message": "Anonymous caller"}}', 401)

    with serving(Refusing) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(UserError, match=r"access denied .*set GOOGLE_APP"):
            read(tmp_path, "gs://data/in/a.jsonl")
