"""A small server that speaks a hub's routes, and what its real client makes of them."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
