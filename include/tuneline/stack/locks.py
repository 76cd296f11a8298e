"""File locks that let one command run at a time and end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tuneline.errors import UserError


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the length of a block.

    Args:
        path: the lock file.
        what: the activity that the lock stands for, for the message ("a demo").

    Raises:
        UserError: if another process holds it; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"{what} is running already (process {holder}); wait for it to end or stop it"
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield
