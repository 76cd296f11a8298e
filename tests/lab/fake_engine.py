"""An engine without a model, in a process of its own: `tuneline engine` for a follower's tests.

    python -m tests.lab.fake_engine engine --store URI --release a@1@SHA256 --port 4711

It answers with the versions that it serves. `behaviour.json` beside the command says how each
version behaves: `exit` (it ends at once), `silent` (it listens and never answers), or seconds that
an answer takes. It states that it has loaded nothing, as its releases do. SIGTERM lets running
requests finish.
"""

import argparse
import json
import os
import signal
import stat
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.lab.http_server import Handler

ROOT = Path(__file__).parents[2]


def install(folder: Path) -> Path:
    """Make a command `tuneline` that starts fake engines, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tuneline"
    path.write_text(
        f"#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m tests.lab.fake_engine "
        f'--behaviour {folder / "behaviour.json"} "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    behave(folder)
    return folder


def behave(folder: Path, **versions: object) -> None:
    """Say how versions behave from now on, also those that run."""
    # In one step: engines read it at each request, and half a file would end their answers.
    fresh = folder / "behaviour.json.new"
    fresh.write_text(json.dumps(versions))
    fresh.replace(folder / "behaviour.json")


_VLLM = """
import pathlib, sys
from tests.lab.fake_engine import listen
name, port = (sys.argv[sys.argv.index(word) + 1] for word in ("--served-model-name", "--port"))
listen(pathlib.Path(sys.argv[0]).with_name("behaviour.json"), [f"{name}@vllm"], int(port))
"""


def install_vllm(folder: Path) -> str:
    """Make a package `vllm` for the CPU whose server is this engine; return its PYTHONPATH."""
    cli, about = folder / "vllm/entrypoints/cli", folder / "vllm-1.0+cpu.dist-info"
    for place in (cli, about):
        place.mkdir(parents=True)
    (folder / "vllm/__init__.py").touch()
    (cli / "main.py").write_text(_VLLM)
    (about / "METADATA").write_text("Name: vllm\nVersion: 1.0+cpu\n")
    behave(cli)
    return f"{folder}:{ROOT}"


class _Engine(Handler):
    protocol_version = "HTTP/1.1"
    behaviour: Path
    releases: list[str]

    def do_GET(self):
        if self._mode() == "silent":
            time.sleep(3600)
        if self.path == "/v1/models":
            names = [release.partition("@")[0] for release in self.releases]
            self._send({"data": [{"id": name} for name in names]})
        else:
            self._send([])

    def do_POST(self):
        body = json.loads(self.body())
        mode = self._mode()
        if mode == "silent":
            time.sleep(3600)
        if mode == "error":
            self._send({"error": {"message": "broken"}}, 500)
            return
        if isinstance(mode, int | float) and body["messages"][0]["content"] != "ping":
            time.sleep(mode)
        message = {"role": "assistant", "content": ",".join(self.releases)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._send({"object": "chat.completion", "choices": [choice], "usage": usage})

    def _mode(self):
        return _mode(self.behaviour, self.releases)

    def _send(self, payload, status=200):
        self.answer(json.dumps(payload).encode(), status, {"content-type": "application/json"})


class _Server(ThreadingHTTPServer):
    # A follower's engine drains: running answers are waited for.
    daemon_threads = False
    request_queue_size = 256


def _mode(behaviour: Path, releases: list[str]):
    known = json.loads(behaviour.read_text())
    return next((known[r.split("@")[1]] for r in releases if r.split("@")[1] in known), None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", type=Path, required=True)
    parser.add_argument("command")
    parser.add_argument("--store")
    parser.add_argument("--release", action="append")
    parser.add_argument("--port", type=int)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    # A follower names the hash of the manifest behind the version.
    given.release = ["@".join(release.split("@")[:2]) for release in given.release]
    if _mode(given.behaviour, given.release) == "exit":
        print(f"tuneline: {given.release[0]} can't be loaded: out of memory", file=sys.stderr)
        sys.exit(1)
    given.record.write_text("{}")
    listen(given.behaviour, given.release, given.port)


def listen(behaviour, releases, port):
    """Answer until SIGTERM."""
    _Engine.behaviour, _Engine.releases = behaviour, releases
    server = _Server(("127.0.0.1", port), _Engine)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stop.wait()
    server.shutdown()
    # Idle connections hold threads open; what runs gets a moment.
    time.sleep(0.5)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
