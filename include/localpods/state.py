"""The state directory: what must outlive the server."""

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

from localpods.objects import LOOPBACK, Json

_PRIVATE_DIR = 0o700
_PRIVATE_FILE = 0o600
# macOS has a directory for temporary files whose name alone is half of what a socket may have.
_SHORT_PATH = 30


class SetupError(Exception):
    """The server cannot start as asked; the message says why and what to do."""


class SecretError(Exception):
    """A secret is missing or is not kept safely; the message never holds a value."""


def write_json(path: Path, content: Any) -> None:
    """Write a file that only the owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    temporary.replace(path)


def read_json(path: Path) -> Json | None:
    """Read a JSON object, or return `None` when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(content, dict)
    return content


def remove_tree(path: Path) -> None:
    """Delete a directory, also one in which a pod has taken away its own right to write."""
    for directory, names, _ in os.walk(path):
        for name in names:
            below = os.path.join(directory, name)
            # What a link points to is not the pod's.
            if not os.path.islink(below):
                os.chmod(below, _PRIVATE_DIR)
    shutil.rmtree(path, ignore_errors=True)


class StateDir:
    """Where pods, jobs, the token and the kubeconfig of one server lie."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.kubeconfig = self.root / "kubeconfig"
        self.secrets_file = self.root / "secrets.json"
        self.server_file = self.root / "server.json"
        self.events_file = self.root / "events.jsonl"
        self._token_file = self.root / "token"
        self._pods = self.root / "pods"
        self._jobs = self.root / "jobs"
        self._trash = self.root / "trash"
        self._temp_file = self.root / "temp.json"

    def prepare(self) -> None:
        """Create what is missing."""
        for directory in (self.root, self._pods, self._jobs, self._trash):
            directory.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
        self.root.chmod(_PRIVATE_DIR)
        remove_tree(self._trash)
        self._trash.mkdir(mode=_PRIVATE_DIR)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one server; the lock ends with the process, however it ends.

        Raises:
            SetupError: Another server holds it.
        """
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                server = read_json(self.server_file) or {}
                raise SetupError(
                    f"{self.root} is already served by process {server.get('pid')} on port "
                    f"{server.get('port')}: use that one, or stop it with "
                    f"`localpods stop --state {self.root}`"
                ) from None
            yield

    def token(self) -> str:
        """Return the bearer token, made on first use and kept so that clients can reconnect."""
        try:
            descriptor = os.open(
                self._token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE
            )
        except FileExistsError:
            return self._token_file.read_text(encoding="ascii").strip()
        token = secrets.token_urlsafe(32)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token)
        return token

    def write_kubeconfig(self, port: int) -> None:
        """Write the kubeconfig that clients connect with; JSON is YAML, too."""
        write_json(
            self.kubeconfig,
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "localpods",
                "clusters": [
                    {"name": "localpods", "cluster": {"server": f"http://{LOOPBACK}:{port}"}}
                ],
                "users": [{"name": "localpods", "user": {"token": self.token()}}],
                "contexts": [
                    {
                        "name": "localpods",
                        "context": {"cluster": "localpods", "user": "localpods"},
                    }
                ],
            },
        )

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """Return a secret's keys and values, or `None` when there is no such secret.

        The file is `{"name": {"key": "value"}}`; `"namespace/name"` goes before `"name"`.

        Raises:
            SecretError: Others can read the file, or it is not of that shape.
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
            raise SecretError(f'{self.secrets_file}: "{name}" must map keys to texts')
        return found

    def pod_dir(self, uid: str) -> Path:
        """Return a pod's own directory."""
        return self._pods / uid

    def temp_dir(self, uid: str) -> Path:
        """Return a pod's directory for temporary files.

        It lies outside the state directory, under a short path: Unix sockets, which Python's
        multiprocessing puts there, may have about a hundred letters only.
        """
        root = self._temp_root()
        if root is None or not root.is_dir():
            usual = tempfile.gettempdir()
            # `mkdtemp` makes a name that nobody can guess, with no access for others.
            short = usual if len(usual) < _SHORT_PATH else "/tmp"  # noqa: S108
            root = Path(tempfile.mkdtemp(prefix="localpods-", dir=short))
            write_json(self._temp_file, {"path": str(root)})
        return root / uid[:8]

    def drop_temp(self, uid: str) -> None:
        """Delete a pod's temporary files."""
        root = self._temp_root()
        if root is not None:
            remove_tree(root / uid[:8])

    def _temp_root(self) -> Path | None:
        kept = read_json(self._temp_file)
        return Path(kept["path"]) if kept else None

    def save_pod(self, pod: Json) -> None:
        """Keep a pod."""
        directory = self.pod_dir(pod["metadata"]["uid"])
        directory.mkdir(mode=_PRIVATE_DIR, exist_ok=True)
        write_json(directory / "pod.json", pod)

    def drop_pod(self, uid: str) -> Path | None:
        """Forget a pod and return what is left to delete, or `None`; deleting may take long."""
        self.drop_temp(uid)
        rubbish = self._trash / uid
        try:
            self.pod_dir(uid).rename(rubbish)
        except FileNotFoundError:
            return None
        return rubbish

    def save_job(self, job: Json) -> None:
        """Keep a job."""
        write_json(self._jobs / f"{job['metadata']['uid']}.json", job)

    def drop_job(self, uid: str) -> None:
        """Forget a job."""
        (self._jobs / f"{uid}.json").unlink(missing_ok=True)

    def load_pods(self) -> list[Json]:
        """Return all kept pods, oldest first."""
        return _in_order(self._pods.glob("*/pod.json"))

    def load_jobs(self) -> list[Json]:
        """Return all kept jobs, oldest first."""
        return _in_order(self._jobs.glob("*.json"))

    def remove_temp(self) -> None:
        """Delete the temporary files of all pods."""
        root = self._temp_root()
        if root is not None:
            remove_tree(root)
            self._temp_file.unlink()


def _in_order(paths: Iterator[Path]) -> list[Json]:
    objects = [obj for obj in map(read_json, paths) if obj is not None]
    return sorted(objects, key=lambda obj: str(obj["metadata"]["creationTimestamp"]))
