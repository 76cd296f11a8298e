"""Find near-duplicates on Spark, by the functions of `minhash`: the same pairs as on one machine.

Band keys are shuffled, so that rows with equal ones meet; their distinct pairs are joined with the
bitmaps that rule most of them out, the others with their texts, which decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tuneline.data.near_duplicates.minhash import (
    BITS,
    KINDS,
    MAX_BUCKET,
    Edges,
    Search,
    alike_by_marks,
    bands_for,
    cross_candidates,
    edges_here,
    index_texts,
    jaccard,
    neighbours,
    number_bits,
)
from tuneline.data.near_duplicates.shingles import batches
from tuneline.machine.workers import HERE, Engine

if TYPE_CHECKING:
    import pyarrow as pa

    from tuneline.machine.spark import Spark

_Batches = Iterable["pa.RecordBatch"]
_INDEX = "kind int, row long, keys array<bigint>, bits binary, size long"
_PAIR = "kind int, i long, j long"


def search_on(engine: Engine) -> Search:
    """Return the search for near-duplicates that runs on an engine."""
    return edges_here if engine is HERE else partial(_edges, cast("Spark", engine))


def _edges(
    spark: Spark, texts: Sequence[str], first: int | None, threshold: float, seed: int
) -> Iterator[Edges]:
    import pyarrow as pa

    if not texts:
        return
    rows = spark.frame(pa.table({"row": np.arange(len(texts)), "text": pa.array(texts)})).persist()
    work = partial(_index, bands_for(len(texts), threshold), seed)
    index = rows.mapInArrow(work, _INDEX).persist()
    pairs = _candidates(spark, index, first)
    for side in ("i", "j"):
        names = {"row": side, "bits": f"bits_{side}", "size": f"size_{side}"}
        pairs = pairs.join(index.drop("keys").withColumnsRenamed(names), ["kind", side])
    pairs = pairs.mapInArrow(partial(_alike, threshold), _PAIR)
    for side in ("i", "j"):
        pairs = pairs.join(rows.withColumnsRenamed({"row": side, "text": f"text_{side}"}), side)
    near = spark.collect(
        pairs.mapInArrow(partial(_near, threshold), "i long, j long, similarity double")
    )
    for frame in (index, rows):
        frame.unpersist()
    i, j, similarity = (near[name].to_numpy() for name in ("i", "j", "similarity"))
    yield np.stack((i, j), axis=1), similarity


def _candidates(spark: Spark, index: Any, first: int | None) -> Any:
    """Return the pairs of rows that agree in a band, of rows on different sides of `first`."""
    key, left = "key", "false" if first is None else f"row < {first}"
    if first is None:
        bits = [number_bits(spark.count(index.where(f"kind = {kind}"))) for kind in (0, 1)]
        key = f"shiftrightunsigned(key, if(kind = 0, {bits[0]}, {bits[1]}))"
    keys = index.selectExpr("kind", "row", "posexplode(keys) as (band, key)")
    keys = keys.selectExpr("kind", "row", "band", f"{key} as key", f"{left} as left")
    group = ["kind", "band", "key"]
    keys = keys.repartition(*group).sortWithinPartitions(*group, "left", "row")
    return keys.mapInArrow(partial(_pairs, first is not None), _PAIR).dropDuplicates()


def _index(bands: tuple[int, int], seed: int, given: _Batches) -> Iterator[pa.RecordBatch]:
    """Index the short and the long texts of each batch."""
    import pyarrow as pa

    for batch in given:
        texts, numbers = batch["text"].to_pylist(), batch["row"].to_numpy()
        for part in batches(texts):
            for kind, found in enumerate(index_texts(texts[part], part.start, bands, seed)):
                size = len(found.members)
                keys = pa.array(np.ascontiguousarray(found.keys.T).reshape(-1).view(np.int64))
                ends = np.arange(size + 1, dtype=np.int32) * bands[0]
                raw = [None, pa.py_buffer(np.ascontiguousarray(found.bits))]
                columns = {
                    "kind": np.full(size, kind, dtype=np.int32),
                    "row": numbers[found.members],
                    "keys": pa.ListArray.from_arrays(ends, keys),
                    "bits": pa.Array.from_buffers(pa.binary(BITS // 8), size, raw).cast("binary"),
                    "size": found.sizes,
                }
                yield pa.record_batch(columns)


def _pairs(cross: bool, given: _Batches) -> Iterator[pa.RecordBatch]:
    """Pair the rows of equal keys, which are sorted; a key may go on in the next batch."""
    import pyarrow as pa

    kept: dict[str, NDArray[Any]] = {}
    for batch in given:
        new = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        new = {name: np.concatenate((kept[name], new[name])) for name in new} if kept else new
        kind, row, left = new["kind"], new["row"], new["left"]
        fresh = np.zeros(len(row), dtype=bool)
        for name in ("kind", "band", "key"):
            fresh[1:] |= new[name][1:] != new[name][:-1]
        own = np.cumsum(fresh).astype(np.uint64)
        if cross:
            ours, theirs = np.flatnonzero(left), np.flatnonzero(~left)
            i, j = cross_candidates(own[None, ours], own[None, theirs]).T
            found = [(ours[i], theirs[j])]
            last = theirs[own[theirs] == own[-1]][:MAX_BUCKET]
        else:
            found = list(neighbours(own))
            last = np.flatnonzero(own == own[-1])[1 - MAX_BUCKET :]
        for i, j in found:
            yield pa.record_batch({"kind": kind[i], "i": row[i], "j": row[j]})
        kept = {name: values[last] for name, values in new.items()}


def _alike(threshold: float, given: _Batches) -> Iterator[pa.RecordBatch]:
    """Leave out the pairs that their bitmaps rule out."""
    for batch in given:
        if not len(batch):
            continue
        sides = [b"".join(batch[name].to_pylist()) for name in ("bits_i", "bits_j")]
        bits = np.frombuffer(b"".join(sides), dtype=np.uint64).reshape(-1, BITS // 64)
        most = np.concatenate([batch[name].to_numpy() for name in ("size_i", "size_j")])
        numbers = np.arange(len(batch))
        pairs = np.stack((numbers, numbers + len(batch)), axis=1)
        yield batch.select(["kind", "i", "j"]).take(alike_by_marks(bits, most, pairs, threshold))


def _near(threshold: float, given: _Batches) -> Iterator[pa.RecordBatch]:
    """Compare the texts of pairs."""
    import pyarrow as pa

    for batch in given:
        kinds = batch["kind"].to_numpy()
        for kind, shingle in enumerate(KINDS):
            some = batch.filter(pa.array(kinds == kind))
            if not len(some):
                continue
            numbers: dict[str, int] = {}
            i, j = (
                [numbers.setdefault(text, len(numbers)) for text in some[name].to_pylist()]
                for name in ("text_i", "text_j")
            )
            values = jaccard(list(numbers), np.stack((i, j), axis=1), shingle)
            near = pa.record_batch({"i": some["i"], "j": some["j"], "similarity": values})
            yield near.filter(pa.array(values >= threshold))
