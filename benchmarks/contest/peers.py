"""Find the systems to compare with, and the environment that each is installed in."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tuneline.machine.checkout import project_root

INSTALL = "`make bench` builds the environment of the peers"


def bench_python() -> Path:
    """Return the interpreter of the peers: `$TUNELINE_BENCH_PYTHON` or that of `.venv-bench`."""
    named = os.environ.get("TUNELINE_BENCH_PYTHON")
    return Path(named) if named else project_root() / ".venv-bench" / "bin" / "python"


def why_missing(module: str, python: Path | None = None) -> str | None:
    """Return the reason that a peer can't be measured, None if it can.

    Args:
        module: name of its Python module.
        python: interpreter that should have it installed, None for this one.
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


def version_of(*packages: str) -> str:
    """Return the versions of installed packages in the form of a result."""
    if len(packages) == 1:
        return version(packages[0])
    return ", ".join(f"{package} {version(package)}" for package in packages)
