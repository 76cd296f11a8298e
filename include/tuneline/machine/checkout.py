"""The checkout that this code runs from, and the folder that its stack writes to."""

from __future__ import annotations

import os
from pathlib import Path

from tuneline.errors import UserError


def project_root() -> Path:
    """Return the folder that holds `include/` and `dags/`; that of a wheel has neither."""
    return Path(__file__).resolve().parents[3]


def stack_home() -> Path:
    """Return the folder of everything the stack writes: `$TUNELINE_HOME` or `.tuneline`."""
    project = project_root()
    if not (project / "dags").is_dir():
        raise UserError(f"{project} is not a checkout of the project (no dags/); run from one")
    return Path(os.environ.get("TUNELINE_HOME") or project / ".tuneline").absolute()
