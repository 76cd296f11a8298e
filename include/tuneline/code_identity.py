"""Identify the code of a run: a git commit, an image's build argument, or a hash of the files."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from tuneline.machine.checkout import project_root

# Set when an image is built: a container has the code but no git history.
IMAGE_COMMIT = "TUNELINE_IMAGE_COMMIT"


def code_identity(root: Path | None = None) -> dict[str, Any]:
    """Identify the code that runs.

    Args:
        root: the project's folder; by default that of the running code.

    Returns:
        `source` (git, image or files), `commit` (None without one), `dirty` (True if files
        differ from the commit), `tree_sha256` of the Python files and configuration, and a
        `note` for a person.
    """
    root = root or project_root()
    identity: dict[str, Any] = {"commit": None, "dirty": None, "tree_sha256": tree_sha256(root)}
    head = _git(root, "rev-parse", "HEAD")
    top = _git(root, "rev-parse", "--show-toplevel")
    # A tarball unpacked inside another repository does not belong to its commit.
    if head and top and Path(top).resolve() == root:
        changes = _git(root, "status", "--porcelain", "--untracked-files=normal") or ""
        dirty = bool(changes)
        note = f"{len(changes.splitlines())} uncommitted changes" if dirty else "a clean checkout"
        return {**identity, "source": "git", "commit": head, "dirty": dirty, "note": note}
    built = os.environ.get(IMAGE_COMMIT)
    if built:
        return {
            **identity,
            "source": "image",
            "commit": built,
            "dirty": False,
            "note": "the image states the commit it was built from",
        }
    return {
        **identity,
        "source": "files",
        "note": "no git history here (a tarball?); only the hash of the files identifies it",
    }


def tree_sha256(root: Path) -> str:
    """Return the SHA-256 of the project's code: path and bytes of each file, in order."""
    digest = hashlib.sha256()
    folders = ("include", "dags", "plugins", "config")
    files = (
        path
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix in {".py", ".yaml", ".json", ".jsonl", ".html"}
    )
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
