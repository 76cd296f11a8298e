"""The environment of child processes that run this package's modules."""

from __future__ import annotations

import os
from pathlib import Path

# What a process needs to find its libraries and to run them.
_NEEDED = (
    "PYTHONPATH LD_LIBRARY_PATH HOME TMPDIR HF_HOME CUDA_VISIBLE_DEVICES OMP_NUM_THREADS "
    "OMP_WAIT_POLICY TUNELINE_THREADS"
).split()
_INCLUDE = Path(__file__).resolve().parents[2]


def child_environment(*folders: Path, **settings: str) -> dict[str, str]:
    """This process's environment, in which a child can import this package, installed or not."""
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(_INCLUDE), *map(str, folders), inherited]))
    return {**os.environ, "PYTHONPATH": path, **settings}


def bare_environment() -> dict[str, str]:
    """An environment without secrets, for a child that reads texts from outside."""
    return {name: value for name, value in child_environment().items() if name in _NEEDED}
