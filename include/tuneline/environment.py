"""Code, packages and device of a process, and the Airflow task that it is."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tuneline.machine.checkout import project_root

# Set when an image is built: a container has the code but no git history.
IMAGE_COMMIT = "TUNELINE_IMAGE_COMMIT"
# What follows the commit of an image that was built from a checkout with changes.
_DIRTY = "-dirty"


def code_identity(root: Path | None = None) -> dict[str, Any]:
    """Return `library_identity`, and `tree_sha256` of the code and configuration of a checkout."""
    named = root or project_root()
    folders = (_library(root), named / "dags", named / "config")
    return {**library_identity(root), "tree_sha256": tree_sha256(*folders)}


def _library(root: Path | None) -> Path:
    return root / "include" / "tuneline" if root else Path(__file__).parent


def library_identity(root: Path | None = None) -> dict[str, Any]:
    """Identify the library that runs, or that of a checkout.

    Returns:
        `source` (git, image, wheel or files), `commit` (None without one), `dirty` (True if files
        differ from the commit), `library_sha256` of the code that every image holds, and a
        `note` for a person.
    """
    library = _library(root)
    root = root or project_root()
    identity: dict[str, Any] = {
        "commit": None,
        "dirty": None,
        "library_sha256": tree_sha256(library),
    }
    head = _git(root, "rev-parse", "HEAD")
    top = _git(root, "rev-parse", "--show-toplevel")
    # A tarball unpacked inside another repository does not belong to its commit.
    if head and top and Path(top).resolve() == root:
        changes = _git(root, "status", "--porcelain", "--untracked-files=normal") or ""
        dirty = bool(changes)
        note = f"{len(changes.splitlines())} uncommitted changes" if dirty else "a clean checkout"
        return {**identity, "source": "git", "commit": head, "dirty": dirty, "note": note}
    stated = library / "COMMIT"
    wheel = stated.read_text() if stated.exists() else ""
    built = wheel or os.environ.get(IMAGE_COMMIT)
    if built:
        dirty = built.endswith(_DIRTY)
        source = "wheel" if wheel else "image"
        return {
            **identity,
            "source": source,
            "commit": built.removesuffix(_DIRTY),
            "dirty": dirty,
            "note": f"the {source} states the commit it was built from"
            + (" and that files differed from it" if dirty else ""),
        }
    return {
        **identity,
        "source": "files",
        "note": "no git history here (a tarball?); only the hash of the files identifies it",
    }


def tree_sha256(*folders: Path) -> str:
    """Return the SHA-256 of the code in folders: path and bytes of each file, in order."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in {".py", ".yaml", ".json", ".jsonl", ".html"}:
                digest.update(path.relative_to(folder.parent).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def other_code(dag: Mapping[str, Any], step: Mapping[str, Any]) -> str | None:
    """Return how the code of a step differs from that of the DAG that made its run.

    None if both are the same, as far as they are known.
    """
    made, runs = dag.get("commit"), step.get("commit")
    if made and runs and made != runs:
        return (
            f"the step's code is of commit {runs[:12]}, and the DAG that made the run is of "
            f"{made[:12]}; build the image from {made[:12]}, or start a new run"
        )
    if made and step and not runs:
        return (
            f"the step's code names no commit, and the DAG that made the run is of {made[:12]}; "
            f"build the image with --build-arg COMMIT={made[:12]}…"
        )
    both = [code.get("library_sha256") for code in (dag, step)]
    if all(both) and both[0] != both[1]:
        return (
            f"the step's code says that it is of commit {str(runs)[:12]}, as the DAG that made the "
            "run, but its files differ from the DAG's; build the image from a clean checkout"
            if runs
            else "the files of the step's code differ from those of the DAG that made the run; "
            "build the image from the DAG's files, or start a new run"
        )
    return None


def unknown_code(code: Mapping[str, Any], whose: str) -> str | None:
    """Return why no one can tell which code it is; None for a clean checkout of a commit."""
    if code.get("commit") is None:
        return f"{whose} is of no commit ({code.get('note')}); run it from a commit"
    if code.get("dirty") is not False:
        return f"{whose} differs from its commit ({code.get('note')}); commit the changes"
    return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_REPORTED_PACKAGES = (
    "torch transformers peft trl bitsandbytes datasketch great-expectations onnxruntime "
    "presidio-analyzer mlflow wandb gguf xllamacpp tensorrt-llm boto3 apache-airflow"
).split()


def environment() -> dict[str, Any]:
    """Return Python, package versions, device and code of this process.

    `packages` has those that matter most; `packages_sha256` identifies the list of all, see
    `all_packages`.
    """
    installed = all_packages()
    return {
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in _REPORTED_PACKAGES if name in installed},
        "packages_sha256": hash_packages(installed),
        "device": device(),
        "cores": os.cpu_count(),
        "code": own_code(),
    }


@cache
def all_packages() -> dict[str, str]:
    """Return the version of every package that this process could import, by name."""
    found: dict[str, str] = {}
    # The first folder of the path that has a package is the one that it is imported from.
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def hash_packages(packages: Mapping[str, str]) -> str:
    """Return the SHA-256 of a list of packages."""
    return hashlib.sha256(json.dumps(dict(sorted(packages.items()))).encode()).hexdigest()


@cache
def own_code() -> dict[str, Any]:
    """Return the identity of the code of this process, without its note; see `library_identity`."""
    return {key: value for key, value in library_identity().items() if key != "note"}


def device() -> str:
    """Return the name of this process's accelerator, `cpu` without one.

    Torch is asked only if the step has loaded it, since importing it takes seconds.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "cpu"


def airflow_identity() -> dict[str, Any] | None:
    """Return the Airflow task of this process, as the DAG passed it on; None without one."""
    dag_id = os.environ.get("TUNELINE_AIRFLOW_DAG_ID")
    if not dag_id:
        return None
    return {
        "dag_id": dag_id,
        "run_id": os.environ.get("TUNELINE_AIRFLOW_RUN_ID", ""),
        "task_id": os.environ.get("TUNELINE_AIRFLOW_TASK_ID", ""),
        "try_number": int(os.environ.get("TUNELINE_AIRFLOW_TRY_NUMBER", "1")),
    }
