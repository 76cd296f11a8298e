"""Datasets from a hub: the real client against a small server that speaks its routes."""

import gzip
import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from tests.lab.data_runs import clean_rows

from tuneline.data.sources.hub import parse_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in clean_rows(5))
FILES = {
    "README.md": b"# data",
    "data/train.jsonl": ROWS,
    "data/more.jsonl.gz": gzip.compress(ROWS),
    "test.jsonl": ROWS,
}


@pytest.fixture
def hub():
    """Serves one dataset, org/chats, at one commit that two branches name."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(self.path.split("?")[0])
            start = f"/datasets/org/chats/resolve/{COMMIT}/"
            if path.startswith("/api/datasets/org/chats"):
                if path.rpartition("/revision/")[2] in ("main", "refs/pr/1", COMMIT):
                    siblings = [{"rfilename": name} for name in FILES]
                    body = {"id": "org/chats", "sha": COMMIT, "siblings": siblings, "tags": []}
                    self.answer(200, json.dumps(body).encode())
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(start) and path.removeprefix(start) in FILES:
                data = FILES[path.removeprefix(start)]
                headers = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.answer(200, data, headers)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def answer(self, status, data, headers=()):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(address, tmp_path, **environment):
    """Read a dataset in a process of its own: the client reads its settings when imported."""
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from tuneline.config import DataConfig\n"
        "from tuneline.data.sources.opened import open_files\n"
        "from tuneline.errors import TunelineError\n"
        "try:\n"
        "    found = [[o.file.name, o.file.origin, len(list(o.records(None)))]\n"
        "             for o in open_files(DataConfig(source=sys.argv[1]), Path(sys.argv[2]))]\n"
        "except TunelineError as error:\n"
        "    found = {'kind': type(error).__name__, 'error': str(error)}\n"
        "print(json.dumps(found))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, address, str(tmp_path / "scratch")],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": "include",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **environment,
        },
    )
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("rest", "files"),
    [
        ("", ["data/more.jsonl.gz", "data/train.jsonl", "test.jsonl"]),
        ("@main/data", ["data/more.jsonl.gz", "data/train.jsonl"]),
        ("@refs%2Fpr%2F1/data/*.jsonl", ["data/train.jsonl"]),
        (f"@{COMMIT}/test.jsonl", ["test.jsonl"]),
    ],
)
def test_files_of_a_dataset(hub, tmp_path, rest, files):
    found = read(f"hf://datasets/org/chats{rest}", tmp_path, HF_ENDPOINT=hub)
    given = "hf://datasets/org/chats" + rest.split("/")[0]
    pinned = f"hf://datasets/org/chats@{COMMIT}"
    assert found == [[f"{given}/{name}", f"{pinned}/{name}", 5] for name in files]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://datasets/org/chats@nope", "the hub knows no such revision"),
        ("hf://datasets/org/other", "the hub knows no such repository"),
        ("hf://datasets/org/chats/none.jsonl", "has no JSONL, CSV or Parquet file there"),
        ("hf://datasets/org/-chats-", "dataset 'hf://datasets/org/-chats-'"),
    ],
)
def test_what_the_hub_does_not_know(hub, tmp_path, address, words):
    found = read(address, tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert words in found["error"]


@pytest.mark.parametrize(
    "surroundings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_a_hub_that_cannot_be_reached_is_worth_a_retry(tmp_path, surroundings):
    found = read("hf://datasets/org/chats@main/test.jsonl", tmp_path, **surroundings)
    assert found["kind"] == "RetryableError"
    assert "the hub can't be reached" in found["error"]
    assert "give a directory or s3:// instead" in found["error"]


def test_addresses():
    found = parse_address("hf://datasets/a/b-c.d@refs%2Fconvert%2Fparquet/x/*.parquet")
    assert (found.repository, found.revision) == ("a/b-c.d", "refs/convert/parquet")
    assert found.path == "x/*.parquet"
    assert parse_address("hf://datasets/a/b").revision == "main"
