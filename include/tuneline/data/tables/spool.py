"""Keep objects on disk between two passes over a dataset."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Spool(Generic[_Item]):
    """Batches of objects, written once and read in order, any number of times.

    Args:
        path: a file in a step's scratch folder, which no other process writes to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.write_bytes(b"")
        self._batches = 0

    def add(self, batch: Sequence[_Item]) -> None:
        """Add a batch."""
        with self._path.open("ab") as file:
            pickle.dump(batch, file, protocol=pickle.HIGHEST_PROTOCOL)
        self._batches += 1

    def __iter__(self) -> Iterator[Sequence[_Item]]:
        with self._path.open("rb") as file:
            for _ in range(self._batches):
                yield pickle.load(file)  # noqa: S301 - written by this process
