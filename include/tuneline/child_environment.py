"""The environment of child processes that run this package's modules."""

from __future__ import annotations

import os
from pathlib import Path

_INCLUDE = Path(__file__).resolve().parents[1]


def child_environment(**settings: str) -> dict[str, str]:
    """This process's environment, in which a child can import this package, installed or not.

    Args:
        settings: Variables that the child gets besides.
    """
    path = os.pathsep.join(filter(None, [str(_INCLUDE), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **settings}
