"""Rows that a hold-out shares with others that were used before.

The identity of a hold-out is a hash over all of its rows, so one more row makes it another one.
Its rows have been looked at all the same. Beside its ledger each hold-out therefore leaves the
hashes of its questions, in one write-once object under `ledger/rows/`, and a new hold-out is
compared with those.

The cost is bounded: the hashes of the newest `COMPARED` hold-outs are read, and a hold-out of more
than `MOST_ROWS` rows leaves its smallest hashes alone, so that its shared rows are counted low.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import Row
from tuneline.harness.rows import asked
from tuneline.run import now
from tuneline.store import AlreadyThere, Store

# More than a year of nights.
COMPARED = 400
# 160 kB of hashes.
MOST_ROWS = 20_000
# Reads from a bucket wait for the network.
READERS = 16
_PREFIX = "ledger/rows"
_HASH = np.dtype(">u8")

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Another hold-out that has rows of this one.

    Attributes:
        holdout: its identity.
        rows: ids of the rows of this hold-out that it has too.
    """

    holdout: str
    rows: frozenset[str]


@dataclass(frozen=True)
class Overlaps:
    """The other hold-outs that have rows of this one, and what was compared.

    Attributes:
        found: those that have.
        compared: number of other hold-outs that were compared.
        older: number of older ones that were not.
        noted: True if this one has left the hashes of its rows.
    """

    found: tuple[Overlap, ...]
    compared: int
    older: int
    noted: bool

    @property
    def rows(self) -> frozenset[str]:
        """Ids of the rows of this hold-out that any of the others has."""
        return frozenset().union(*(each.rows for each in self.found))


def row_hashes(rows: Iterable[Row]) -> Hashes:
    """Return a hash of each row's question, whatever its case, punctuation and id."""
    texts = (normalise(asked(row)) or asked(row) for row in rows)
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype=_HASH).astype(np.uint64)


def note_rows(store: Store, holdout: str, rows: Sequence[Row]) -> None:
    """Leave the hashes of a hold-out's rows."""
    smallest = np.unique(row_hashes(rows))[:MOST_ROWS]
    # The day comes first, so that the newest are found without reading any.
    key = f"{_PREFIX}/{now()[:10]}-{holdout}"
    try:
        store.put_bytes(key, smallest.astype(_HASH).tobytes(), once=True)
    except AlreadyThere:
        # Another step of the same hold-out was faster, with the same bytes.
        return


def overlaps(
    store: Store, holdout: str, rows: Sequence[Row], log: Callable[[str], object]
) -> Overlaps:
    """Find the other hold-outs that have rows of this one.

    Args:
        store: the store with the ledger.
        holdout: identity of the hold-out.
        rows: its rows.
        log: function that takes one line of progress.
    """
    names = {key.rpartition("-")[2]: key for key in sorted(store.keys(_PREFIX))}
    noted = names.pop(holdout, None) is not None
    newest = sorted(names.items(), key=lambda named: named[1], reverse=True)[:COMPARED]
    if newest:
        log(f"looking for rows that {len(newest)} other hold-outs have too")
    own = row_hashes(rows)
    with ThreadPoolExecutor(READERS) as pool:
        others = list(pool.map(lambda named: _read(store, named[1]), newest))
    found = []
    for (other, _), hashes in zip(newest, others, strict=True):
        hit = np.flatnonzero(np.isin(own, hashes))
        if hit.size:
            found.append(Overlap(other, frozenset(rows[at].row_id for at in hit.tolist())))
    return Overlaps(tuple(found), len(newest), len(names) - len(newest), noted)


def _read(store: Store, key: str) -> Hashes:
    return np.frombuffer(store.get_bytes(key), dtype=_HASH).astype(np.uint64)
