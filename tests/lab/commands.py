"""Commands that tests run to their end."""

import os
import subprocess
from pathlib import Path


def call(
    *command: str | Path,
    cwd: Path | None = None,
    timeout: float | None = None,
    check: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code, and what it wrote as text."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )
