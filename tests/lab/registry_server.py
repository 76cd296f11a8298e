"""The reference implementation of an OCI registry (Debian's docker-registry), on a free port."""

import json
import socket
import subprocess
from pathlib import Path

import httpx
from tests.lab.waiting import wait_for

USER, PASSWORD = "alice", "registry-password-1"
# Made by crypt(3) with few rounds.
_BCRYPT = "$2b$04$abcdefghijklmnopqrstuuho3md6bLx6kwBQz.dlM/PESOEWgyuqq"


class RegistryServer:
    """A registry that keeps what it has in a folder; `kill` and `start` are a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
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
