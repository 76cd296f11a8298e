"""The state folder: everything that is kept over a restart of the server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localpods.objects import Json

_PRIVATE_FOLDER = 0o700
_PRIVATE_FILE = 0o600
# The name of macOS's temporary folder alone takes half of the length that a socket path may have.
_SHORT_PATH = 30


class SetupError(Exception):
    """The server cannot start as asked; the message says why and what to do."""


class SecretError(Exception):
    """A secret is missing or is not kept safely; the message never contains a value."""


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that only its owner can read, completely or not at all."""
    write_private(path, json.dumps(content))


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
        self._jobs = self.root / "jobs"
        self._trash = self.root / "trash"

    def prepare(self) -> None:
        """Create what is missing."""
        remove_tree(self._trash)
        for folder in (self.root, self.pods, self._jobs, self._trash):
            folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        self.root.chmod(_PRIVATE_FOLDER)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one server; the lock ends with the process, however it ends.

        Raises:
            SetupError: if another server holds it.
        """
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                server = read_json(self.server_file) or {}
                raise SetupError(
                    f"{self.root} is already served by process {server.get('pid')} on port "
                    f"{server.get('port')}: use that one, or stop it first"
                ) from None
            yield

    def token(self) -> str:
        """Return the bearer token; it is created once, so that clients can reconnect."""
        if not self._token_file.exists():
            write_private(self._token_file, secrets.token_urlsafe(32))
        return self._token_file.read_text(encoding="ascii").strip()

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """Return the keys and values of a secret, or None if there is no such secret.

        The file is `{"name": {"key": "value"}}`; `"namespace/name"` takes precedence over
        `"name"`.

        Raises:
            SecretError: if others can read the file, or it does not have that shape.
        """
        if not self.secrets_file.exists():
            return None
        if self.secrets_file.stat().st_mode & 0o077:
            raise SecretError(f"{self.secrets_file} must be readable by its owner only: chmod 600")
        try:
            content = read_json(self.secrets_file) or {}
        except (ValueError, AssertionError):
            # The parser's message could quote a value.
            raise SecretError(f"{self.secrets_file} is not a JSON object") from None
        found = content.get(f"{namespace}/{name}", content.get(name))
        if found is not None and not (
            isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
        ):
            raise SecretError(f'{self.secrets_file}: "{name}" must map keys to strings')
        return found

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

    def save_pod(self, pod: Json) -> None:
        """Save a pod."""
        folder = self.pod_dir(pod["metadata"]["uid"])
        folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
        write_json(folder / "pod.json", pod)

    def drop_pod(self, uid: str) -> Path | None:
        """Forget a pod and return the folder that is left to delete, which may take long."""
        self.drop_temp(uid)
        try:
            return self.pod_dir(uid).rename(self._trash / uid)
        except FileNotFoundError:
            return None

    def save_job(self, job: Json) -> None:
        """Save a job."""
        write_json(self._jobs / f"{job['metadata']['uid']}.json", job)

    def drop_job(self, uid: str) -> None:
        """Forget a job."""
        (self._jobs / f"{uid}.json").unlink(missing_ok=True)

    def load_pods(self) -> list[Json]:
        """Return all saved pods, oldest first."""
        return _in_order(self.pods.glob("*/pod.json"))

    def load_jobs(self) -> list[Json]:
        """Return all saved jobs, oldest first."""
        return _in_order(self._jobs.glob("*.json"))


def _in_order(paths: Iterator[Path]) -> list[Json]:
    objects = [obj for obj in map(read_json, paths) if obj is not None]
    return sorted(objects, key=lambda obj: str(obj["metadata"]["creationTimestamp"]))
