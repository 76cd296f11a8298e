"""What every benchmark is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Settings of one benchmark.

    Attributes:
        folder: for its files; thrown away afterwards.
        log: takes one line of progress.
        input: rows of the caller's own in place of generated ones.
        runs: runs of each system; None for the benchmark's default.
        rows: rows to generate, or to take of the input; None for the default, or all.
    """

    folder: Path
    log: Callable[[str], None]
    input: Path | None = None
    runs: int | None = None
    rows: int | None = None
