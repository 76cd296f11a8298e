"""A clock that a demo moves on by days: libfaketime, in every process of a stack.

`scripts/demo_drift.sh` sets its variables. Monotonic clocks and the times of files stay as they
are, so that waiting takes as long as ever and Python's compiled modules stay valid.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

# It moves on by less than this at once.
MOST_SECONDS = 2 * 86400
_FILE = "FAKETIME_TIMESTAMP_FILE"
# Each process reads the file again after FAKETIME_CACHE_DURATION, a second.
_READ_BY_ALL_SECONDS = 2.5


def environment() -> dict[str, str]:
    """Return the variables that give a process this clock; none where there is no such clock."""
    if _FILE not in os.environ:
        return {}
    names = ("LD_PRELOAD", "NO_FAKE_STAT")
    return {k: v for k, v in os.environ.items() if k.startswith("FAKETIME") or k in names}


def move_to(moment: datetime | None) -> None:
    """Move the clock to a moment, None for the real time; wait until every process has it."""
    path = Path(os.environ[_FILE])
    ahead = moment - datetime.now(UTC) if moment else None
    offset = float(path.read_text()) + ahead.total_seconds() if ahead else 0.0
    new = path.with_suffix(".new")
    new.write_text(f"{offset:+.0f}\n")
    new.replace(path)
    time.sleep(_READ_BY_ALL_SECONDS)
