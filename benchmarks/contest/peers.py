"""Which peers are installed, and in which environment."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tuneline import __version__
from tuneline.machine.checkout import project_root

INSTALL = "`make bench` builds the environment of the peers"


def bench_python() -> Path:
    """The interpreter of the peers' environment: `$TUNELINE_BENCH_PYTHON` or `.venv-bench`."""
    named = os.environ.get("TUNELINE_BENCH_PYTHON")
    return Path(named) if named else project_root() / ".venv-bench" / "bin" / "python"


def why_missing(module: str, python: Path | None = None) -> str | None:
    """Why a peer can't be measured, None when it can.

    Args:
        module: the Python module that it is.
        python: the interpreter that should have it; None for this one.
    """
    if python is not None and not python.is_file():
        return f"there is no {python}; {INSTALL}"
    question = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    command = [str(python or sys.executable), "-c", question]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode == 0:
        return None
    where = f"the environment of {python}" if python else "this environment"
    return f"{module} is not installed in {where}"


def own_version() -> str:
    """The version of this package."""
    return __version__


def version_of(*packages: str) -> str:
    """The versions of installed packages, as a result shows them."""
    if len(packages) == 1:
        return version(packages[0])
    return ", ".join(f"{package} {version(package)}" for package in packages)
