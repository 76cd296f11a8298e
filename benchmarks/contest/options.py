"""The settings that every benchmark gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Settings of one benchmark.

    Attributes:
        folder: folder for its files, deleted afterwards.
        log: function that takes one line of progress.
        input: file of rows to use in place of generated ones.
        runs: number of runs of each system, None for the benchmark's default.
        rows: number of rows to generate or to take of the input, None for the default or all.
    """

    folder: Path
    log: Callable[[str], None]
    input: Path | None = None
    runs: int | None = None
    rows: int | None = None
