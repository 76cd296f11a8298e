"""The environment of child processes that run this package's modules."""

from __future__ import annotations

import os
from pathlib import Path

_INCLUDE = Path(__file__).resolve().parents[2]


def child_environment(*folders: Path, **settings: str) -> dict[str, str]:
    """This process's environment, in which a child can import this package, installed or not.

    Args:
        folders: Other folders to import from.
        settings: Further environment variables.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(_INCLUDE), *map(str, folders), inherited]))
    return {**os.environ, "PYTHONPATH": path, **settings}
