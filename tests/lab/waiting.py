"""Wait for what another process or thread does."""

import time
from collections.abc import Callable
from typing import Any

# Only a hang takes so long, however busy the machine is.
HANG = 300.0


def wait_for(
    check: Callable[[], Any], what: str = "it", pause: float = 0.02, *, seconds: float = HANG
) -> Any:
    """Wait until a check returns a true value, and return that; between two checks is a pause."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := check():
            return found
        time.sleep(pause)
    raise AssertionError(f"{what} did not come within {seconds} s")
