"""The state folder: everything that is kept over a restart of the server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO

from localpods.objects import Json

_PRIVATE_FOLDER = 0o700
_PRIVATE_FILE = 0o600
# The name of macOS's temporary folder alone takes half of the length that a socket path may have.
_SHORT_PATH = 30
_OBJECT = "object.json"


class SetupError(Exception):
    """The server cannot start as asked; the message says why and what to do."""


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    temporary.replace(path)


def read_json(path: Path) -> Json | None:
    """Read a JSON object, or return None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(content, dict)
    return content


def remove_tree(path: Path) -> None:
    """Delete a folder, also one in which a pod has removed its own write permission."""
    for folder, names, _ in os.walk(path):
        for name in names:
            below = os.path.join(folder, name)
            # The target of a link does not belong to the pod.
            if not os.path.islink(below):
                os.chmod(below, _PRIVATE_FOLDER)
    shutil.rmtree(path, ignore_errors=True)


class StateDir:
    """The folder with the pods, jobs, token, certificate and kubeconfig of one server."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.kubeconfig = self.root / "kubeconfig"
        self.certificate = self.root / "certificate.pem"
        self.secrets_file = self.root / "secrets.json"
        self.server_file = self.root / "server.json"
        self.pods = self.root / "pods"
        self._token_file = self.root / "token"
        self._trash = self.root / "trash"

    def prepare(self) -> None:
        """Create what is missing."""
        remove_tree(self._trash)
        for folder in (self.root, self.pods, self._trash):
            folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        self.root.chmod(_PRIVATE_FOLDER)

    def lock(self) -> IO[str]:
        """Lock the folder for one server, until the file is closed or the process has ended.

        Raises:
            SetupError: if another server has locked it.
        """
        file = (self.root / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = (read_json(self.server_file) or {}).get("pid")
            why = f"{self.root} is already served by process {pid}: use that or stop it first"
            raise SetupError(why) from None
        return file

    def token(self) -> str:
        """Return the bearer token; it is created once, so that clients can reconnect."""
        if not self._token_file.exists():
            write_private(self._token_file, secrets.token_urlsafe(32))
        return self._token_file.read_text(encoding="ascii").strip()

    def pod_dir(self, uid: str) -> Path:
        """Return a pod's folder."""
        return self.pods / uid

    def container_dir(self, uid: str, container: str) -> Path:
        """Return the folder of a container, which holds its log."""
        return self.pod_dir(uid) / "containers" / container

    def temp_dir(self, uid: str) -> Path:
        """Return a pod's folder for temporary files, created on first use.

        It lies outside the state folder, under a short path: the path of a Unix socket, which
        Python's multiprocessing creates there, is limited to about a hundred characters.
        """
        link = self.pod_dir(uid) / "tmp"
        if not link.is_symlink():
            usual = tempfile.gettempdir()
            short = usual if len(usual) < _SHORT_PATH else "/tmp"  # noqa: S108
            # `mkdtemp` chooses a name that nobody can guess and denies access to others.
            link.symlink_to(tempfile.mkdtemp(prefix="localpods-", dir=short))
        return link.readlink()

    def drop_temp(self, uid: str) -> None:
        """Delete a pod's temporary files."""
        link = self.pod_dir(uid) / "tmp"
        if link.is_symlink():
            remove_tree(link.readlink())
            link.unlink()

    def save(self, obj: Json) -> None:
        """Save a pod or job."""
        folder = self.pod_dir(obj["metadata"]["uid"])
        folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
        write_private(folder / _OBJECT, json.dumps(obj))

    def drop(self, uid: str) -> None:
        """Forget a pod or job; its files are deleted in the background, which may take long."""
        self.drop_temp(uid)
        with contextlib.suppress(FileNotFoundError):
            rubbish = self.pod_dir(uid).rename(self._trash / uid)
            threading.Thread(target=remove_tree, args=(rubbish,)).start()

    def load(self) -> list[Json]:
        """Return all saved pods and jobs, oldest first."""
        objects = [json.loads(path.read_text()) for path in self.pods.glob(f"*/{_OBJECT}")]
        return sorted(objects, key=lambda obj: str(obj["metadata"]["creationTimestamp"]))
