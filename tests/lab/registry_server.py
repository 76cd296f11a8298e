"""OCI registries on free ports: the reference implementation (Debian's docker-registry), and one
that asks for tokens.
"""

import json
import subprocess
import threading
from base64 import b64encode
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import httpx
from tests.lab.http_server import Handler
from tests.lab.waiting import wait_for

from tuneline.serving.processes import free_port

USER, PASSWORD = "alice", "registry-password-1"
# Made by crypt(3) with few rounds.
_BCRYPT = "$2b$04$abcdefghijklmnopqrstuuho3md6bLx6kwBQz.dlM/PESOEWgyuqq"


class RegistryServer:
    """A registry that keeps what it has in a folder; `kill` and `start` are a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
        self.host = f"127.0.0.1:{free_port()}"
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "http": {"addr": self.host, "secret": "test"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
        }
        # JSON is YAML.
        (folder / "config.yml").write_text(json.dumps(config))
        self.start()

    def start(self) -> None:
        command = ["docker-registry", "serve", str(self.folder / "config.yml")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, what="the registry")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def blobs(self) -> set[str]:
        """Digests of the blobs that it has whole."""
        return {f.parent.name for f in self.folder.glob("data/**/blobs/sha256/*/*/data")}

    def get(self, repository: str, path: str) -> httpx.Response:
        """Read from a repository, as any client does."""
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        url = f"http://{self.host}/v2/{repository}/{path}"
        return httpx.get(url, auth=(USER, PASSWORD), headers=accept)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.host}/v2/").status_code == 401
        except httpx.HTTPError:
            return False


class TokenRegistry:
    """A registry that asks for tokens, as public ones do, and keeps its blobs elsewhere.

    Its address is not one that stands for this machine. Each token is good for a few requests.

    Attributes:
        seen: for each request its method, its path and the kind of its credentials.
    """

    def __init__(self, *, may_push: bool = True) -> None:
        outer, self.may_push = self, may_push
        self.seen: list[tuple[str, str, str]] = []
        self.stored: dict[str, bytes] = {}
        self._left = 0

        class Bound(_TokenHandler):
            registry = outer

        self._servers = [ThreadingHTTPServer(("127.0.0.2", 0), Bound) for _ in range(2)]
        self.host, self.elsewhere = (f"127.0.0.2:{s.server_port}" for s in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def is_good(self, credentials: str) -> bool:
        self._left -= 1
        return credentials == "Bearer token-of-the-registry" and self._left >= 0

    def sell(self) -> bytes:
        self._left = 50
        return b'{"token": "token-of-the-registry"}'


class _TokenHandler(Handler):
    registry: TokenRegistry

    def _do(self) -> None:
        path, _, query = self.path.partition("?")
        body, given = self.body(), self.headers.get("Authorization", "")
        self.registry.seen.append((self.command, path, given.partition(" ")[0]))
        digest = path.rpartition("/")[2]
        if path == "/token":
            password = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            wrong = given != f"Basic {password}" or "pull%2Cpush" not in query
            self.answer(b"{}" if wrong else self.registry.sell(), 401 if wrong else 200)
        elif self.headers["Host"] == self.registry.elsewhere:
            self.registry.stored[parse_qs(query)["digest"][0]] = body
            self.answer(b"", 201)
        elif not self.registry.is_good(given):
            challenge = f'Bearer realm="http://{self.registry.host}/token",service="test"'
            self.answer(b"{}", 401, {"WWW-Authenticate": challenge})
        elif self.command == "POST":
            place = f"http://{self.registry.elsewhere}/upload?signature=s"
            self.answer(b"", 202 if self.registry.may_push else 403, {"Location": place})
        elif self.command == "PUT":
            self.registry.stored[digest] = body
            self.answer(b"", 201)
        elif digest not in self.registry.stored:
            self.answer(b"", 404)
        else:
            place = f"http://{self.registry.elsewhere}/{digest}"
            self.answer(b"", 307, {"Location": place})

    do_HEAD = do_POST = do_PUT = do_GET = _do
