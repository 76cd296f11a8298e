"""A small server that speaks a hub's routes, and what its real client makes of them."""

import json
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.lab.commands import call
from tests.lab.http_server import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Branches, and the commit that they name.
REVISIONS = ("main", "refs/pr/1", COMMIT)


@contextmanager
def hub(kind: str, repository: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve one repository at one commit; the hub's URL.

    Args:
        kind: models or datasets.
        repository: its owner and name.
        files: their content by name.
    """
    about = f"/api/{kind}/{repository}/"
    folder = f"/{repository}/resolve/{COMMIT}/"
    content = folder if kind == "models" else f"/{kind}{folder}"

    class Hub(Handler):
        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0])
            if path.startswith(f"{about}tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in files.items()
                ]
                self.answer(json.dumps(entries).encode())
            elif path.startswith(about) and path.rpartition("/revision/")[2] in REVISIONS:
                siblings = [{"rfilename": name} for name in files]
                found = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
                self.answer(json.dumps(found).encode())
            elif path.startswith(about):
                self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(content) and path.removeprefix(content) in files:
                data = files[path.removeprefix(content)]
                tag = f'"{sha256(data).hexdigest()}"'
                self.answer(data, headers={"ETag": tag, "X-Repo-Commit": COMMIT})
            else:
                self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

    with serving(Hub) as url:
        yield url


# The client reads its settings when it is imported, and waits between its tries.
_SCRIPT = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from tuneline.errors import TunelineError
{imports}
try:
    found = {expression}
except TunelineError as error:
    found = {{"kind": type(error).__name__, "error": str(error)}}
print(json.dumps(found, default=str))
"""


def in_a_process(
    imports: str, expression: str, *arguments: str, home: Path, **environment: str
) -> Any:
    """Evaluate an expression in a process of its own; an error of ours as kind and sentence.

    Args:
        imports: what the expression needs.
        expression: its value has to be JSON; the arguments are in `sys.argv`.
        arguments: of the process.
        home: folder of the hub's client.
        environment: more variables of the process.
    """
    script = _SCRIPT.format(imports=imports, expression=expression)
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": "include"}
    command = [sys.executable, "-c", script, *arguments]
    done = call(*command, check=True, **settings, **environment)
    return json.loads(done.stdout.splitlines()[-1])


TOKEN = "hf_TokenThatMayWrite0123456789"


@dataclass
class Repository:
    """A repository: files by name of each commit, commits by branch and by tag."""

    visibility: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        oid = sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        return oid

    def find(self, revision: str) -> str:
        """The commit of a branch, tag or commit."""
        return self.branches.get(revision) or self.tags.get(revision) or revision


class WritableHub:
    """The hub's calls that write, as far as its client needs them, over one organisation.

    Attributes:
        uploads: hashes of the large files that were sent, in order.
        dies_after: number of uploads after which the server ends, as when it is killed.
    """

    def __init__(self, organisation: str = "acme") -> None:
        self.organisation = organisation
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.dies_after: int | None = None
        self._port = 0
        self.start()

    def start(self) -> None:
        outer = self

        class Bound(_WriteHandler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Bound)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _is_large(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors", ".sig"))


class _WriteHandler(Handler):
    hub: WritableHub

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(content).encode(), status, headers)

    def _fails(self, status: int, message: str) -> None:
        named = {"X-Error-Message": message} if message else {}
        self.answer(json.dumps({"error": message}).encode(), status, named)

    def _do(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        if self.hub.dies_after is not None and len(self.hub.uploads) >= self.hub.dies_after:
            self.close_connection = True  # as a server that was killed leaves its clients
            return
        if path.startswith("/large/"):
            self._store(path.rpartition("/")[2], body)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fails(401, "Invalid credentials in Authorization header")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("/api/models/"):
            self._about(*path.removeprefix("/api/models/").split("/", 3), body=body)
        else:
            self._content(path)

    do_GET = do_HEAD = do_POST = do_PUT = _do

    def _store(self, oid: str, body: bytes) -> None:
        assert sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.hub.uploads.append(oid)
        self._json({})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.hub.organisation:
            return self._fails(403, "You don't have the rights to create a model here")
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.url}/{name}"}, 409)
        made = self.hub.repositories[name] = Repository(asked["visibility"])
        made.commit("main", {".gitattributes": b"*.gguf filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            if one["oid"] in self.hub.large
            else {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _about(self, owner: str, name: str, call: str = "", rest: str = "", *, body: bytes) -> None:
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif call == "refs":
            lists = {"branches": repository.branches, "tags": repository.tags, "converts": {}}
            self._json(
                {
                    kind: [
                        {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit}
                        for n, commit in refs.items()
                    ]
                    for kind, refs in lists.items()
                }
            )
        elif call == "branch":
            repository.branches.setdefault(rest, repository.branches["main"])
            self._json({})
        elif call == "tag":
            repository.tags[json.loads(body)["tag"]] = repository.find(rest)
            self._json({})
        elif call in ("", "revision"):
            commit = repository.find(rest or "main")
            files = repository.commits[commit].items()
            siblings = [{"rfilename": n, **self._stated(n, data)} for n, data in files]
            self._json({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings, "tags": []})
        elif call == "tree":
            files = repository.commits[repository.find(rest)].items()
            self._json(
                [
                    {
                        "type": "file",
                        "path": n,
                        "size": len(data),
                        "oid": self._stated(n, data)["blobId"],
                    }
                    for n, data in files
                ]
            )
        elif call == "preupload":
            there = repository.commits[repository.find(rest)]
            self._json(
                {
                    "files": [
                        {
                            "path": n,
                            "uploadMode": "lfs" if _is_large(n) else "regular",
                            "shouldIgnore": False,
                            "oid": self._oid(n, there[n]) if n in there else None,
                        }
                        for n in (one["path"] for one in json.loads(body)["files"])
                    ]
                }
            )
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            self._commit(repository, f"{owner}/{name}", rest, lines)

    def _stated(self, name: str, data: bytes) -> dict[str, Any]:
        blob = sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        if not _is_large(name):
            return {"size": len(data), "blobId": blob}
        lfs = {"sha256": sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"size": len(data), "blobId": "0" * 40, "lfs": lfs}

    def _oid(self, name: str, data: bytes) -> str:
        stated = self._stated(name, data)
        return str(stated["lfs"]["sha256"] if "lfs" in stated else stated["blobId"])

    def _commit(
        self, repository: Repository, name: str, branch: str, lines: list[dict[str, Any]]
    ) -> None:
        head = repository.branches[branch]
        if lines[0]["value"].get("parentCommit", head) != head:
            return self._fails(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = b64decode(value["content"])
        oid = repository.commit(branch, files)
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _content(self, path: str) -> None:
        owner, name, _, revision, file = path.removeprefix("/").split("/", 4)
        repository = self.hub.repositories[f"{owner}/{name}"]
        commit = repository.find(revision)
        data = repository.commits[commit][file]
        headers = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        self.answer(data, headers=headers)
