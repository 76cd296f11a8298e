"""Run a server of a benchmark in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tuneline.errors import TunelineError


@contextmanager
def own_process(module: str, options: Sequence[str] = ()) -> Iterator[str]:
    """Run a server that prints its address and ends when its standard input closes.

    Yields:
        The address.

    Raises:
        TunelineError: if the server did not start.
    """
    command = [sys.executable, "-m", module, *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        try:
            if not address:
                raise TunelineError(f"{module} did not start")
            yield address
        finally:
            process.stdin.close()
