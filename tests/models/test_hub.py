"""Base models from a hub: the real client against a small server that speaks its routes."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.lab.tiny_models import make_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "model"
    make_model(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    return directory


@pytest.fixture
def hub(tiny):
    """Serves one repository, org/tiny, at one commit that the branch main names."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/org/tiny/"):
                known = path.split("/revision/")[-1].split("/")[0] in ("main", COMMIT)
                if "/tree/" in path:
                    files = [
                        {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                        for p in tiny.iterdir()
                    ]
                    self.answer(200, json.dumps(files).encode())
                elif known:
                    siblings = [{"rfilename": p.name} for p in tiny.iterdir()]
                    body = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
                    self.answer(200, json.dumps(body).encode())
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
                data = (tiny / path.rsplit("/", 1)[-1]).read_bytes()
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


def resolve(uri, cache, **environment):
    """Resolve in a process of its own: the client reads its settings when imported."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from tuneline.errors import TunelineError\n"
        "from tuneline.models import resolve\n"
        "from dataclasses import asdict\n"
        "try:\n"
        "    found = resolve(sys.argv[1], Path(sys.argv[2]), lambda line: None)\n"
        "except TunelineError as error:\n"
        "    found = {'kind': type(error).__name__, 'error': str(error)}\n"
        "    print(json.dumps(found))\n"
        "else:\n"
        "    print(json.dumps(asdict(found), default=str))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, uri, str(cache)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "include", "HF_HOME": str(cache / "hf"), **environment},
    )
    return json.loads(answer.stdout.splitlines()[-1])


def test_a_branch_is_recorded_as_its_commit(hub, tmp_path):
    found = resolve("hf://org/tiny@main", tmp_path, HF_ENDPOINT=hub)
    assert found["revision"] == COMMIT
    assert found["license"] == "MIT"
    assert "pytorch_model.bin" not in found["files"]
    # The commit itself is the same entry, and needs no network any more.
    again = resolve(f"hf://org/tiny@{COMMIT}", tmp_path, HF_HUB_OFFLINE="1")
    assert again["digest"] == found["digest"]


def test_what_the_hub_does_not_know(hub, tmp_path):
    found = resolve("hf://org/tiny@nope", tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert "no such revision" in found["error"]
    found = resolve("hf://org/other@main", tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert "no such repository" in found["error"]


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    # Nothing listens on the discard port, so the client's own HTTP error comes through.
    for revision in ("main", COMMIT):
        found = resolve(f"hf://org/tiny@{revision}", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
        assert found["kind"] == "RetryableError"
        assert "the hub can't be reached" in found["error"]


def test_offline_may_be_tried_again(tmp_path):
    found = resolve(f"hf://org/tiny@{COMMIT}", tmp_path, HF_HUB_OFFLINE="1")
    assert found["kind"] == "RetryableError"
    assert "give a directory or s3:// instead" in found["error"]
