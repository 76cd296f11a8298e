"""The columns of a curated day, and reading and writing them some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.data.tables.rows import Row, StandIn
from tuneline.governance.production.vocabulary import Reason

# Rows in memory as Python objects at once, while a table is read or written.
STRIDE = 1 << 13

_TEXT, _NUMBER, _SHARE = pa.string(), pa.int64(), pa.float64()
_TURNS = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_STAND_INS = pa.list_(
    pa.struct([("turn", pa.int32()), ("start", pa.int32()), ("end", pa.int32()), ("entity", _TEXT)])
)
# A scrubbed request. The name of its API key is left behind: a key may belong to one person.
SCRUBBED = pa.schema(
    [
        ("request_id", _TEXT),
        ("time", pa.timestamp("ms", "UTC")),
        ("model_version", _TEXT),
        ("messages", _TURNS),
        ("answer", _TEXT),
        ("stand_ins", _STAND_INS),
        ("confidence", _SHARE),
        ("served_by", _TEXT),
        ("fallback_reason", _TEXT),
        ("status", _TEXT),
        ("prompt_tokens", _NUMBER),
        ("completion_tokens", _NUMBER),
        ("n_tokens", _NUMBER),
        ("sample_rate", _SHARE),
    ]
)
# What is known of a row only after all rows were compared.
FOUND = pa.schema(
    [
        ("seen", _NUMBER),
        ("weight", _SHARE),
        ("resembles", _TEXT),
        ("resembles_row", _TEXT),
        ("similarity", _SHARE),
        ("novelty", _SHARE),
        ("stratum", _TEXT),
        ("in_review", pa.bool_()),
        ("inclusion_probability", _SHARE),
    ]
)
CURATED = pa.schema([*SCRUBBED, *FOUND])
REJECTED = pa.schema(
    [
        ("request_id", _TEXT),
        ("reason", _TEXT),
        ("detail", _TEXT),
        ("of", _TEXT),
        ("of_day", _TEXT),
        ("similarity", _SHARE),
        ("seen", _NUMBER),
        ("weight", _SHARE),
    ]
)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A request that is no row of the curated day.

    Attributes:
        request_id: its id.
        reason: why.
        weight: number of requests that these stand for, by the sampling of the log.
        detail: a status or code, never text of the request.
        of: request id of the row that stays in its place, for duplicates.
        of_day: the day of that row, YYYY-MM-DD.
        similarity: similarity to it, for `seen_before`.
        seen: number of logged requests that it stands for, itself and those merged into it.
    """

    request_id: str
    reason: Reason
    weight: float
    detail: str | None = None
    of: str | None = None
    of_day: str | None = None
    similarity: float | None = None
    seen: int = 1


@dataclass
class Found:
    """The columns of `FOUND`, one entry for each row that stays."""

    seen: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    resembles: list[str | None] = field(default_factory=list)
    resembles_row: list[str | None] = field(default_factory=list)
    similarity: list[float | None] = field(default_factory=list)
    novelty: list[float | None] = field(default_factory=list)
    stratum: list[str | None] = field(default_factory=list)
    in_review: list[bool] = field(default_factory=list)
    inclusion_probability: list[float | None] = field(default_factory=list)


def weight_of(sample_rate: float | None) -> float:
    """Return the number of requests that a logged one stands for."""
    return 1 / sample_rate if sample_rate and 0 < sample_rate <= 1 else 1.0


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write `rejected.parquet`, ordered by request id."""
    ordered = sorted(rejected, key=lambda entry: entry.request_id)
    with pq.ParquetWriter(path, REJECTED, compression="zstd") as writer:
        for start in range(0, max(len(ordered), 1), STRIDE):
            some = [asdict(entry) for entry in ordered[start : start + STRIDE]]
            writer.write_table(pa.Table.from_pylist(some, REJECTED))


def write_curated(path: Path, scrubbed: Path, stays: Sequence[int], found: Found) -> None:
    """Write `curated.parquet`.

    Args:
        path: the file.
        scrubbed: table of `SCRUBBED` with every usable request.
        stays: numbers of its rows that stay, ascending.
        found: the other columns of these rows.
    """
    numbers = pa.array(stays, pa.int64())
    others = pa.Table.from_pydict(asdict(found), FOUND)
    with pq.ParquetWriter(path, CURATED, compression="zstd") as writer:
        start = done = 0
        for batch in batches_of(scrubbed):
            stop = start + batch.num_rows
            here = [n for n in numbers.slice(done, batch.num_rows).to_pylist() if n < stop]
            taken = batch.take(pa.array([n - start for n in here], pa.int64()))
            more = others.slice(done, len(here)).combine_chunks()
            columns = [*taken.columns, *(column.combine_chunks() for column in more.columns)]
            writer.write_table(pa.Table.from_arrays(columns, schema=CURATED))
            start, done = stop, done + len(here)


def batches_of(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, some at a time."""
    with pq.ParquetFile(path) as table:
        yield from table.iter_batches(STRIDE, columns=columns and list(columns))


def compared_row(entry: Mapping[str, Any]) -> Row:
    """Return a request as a row of the data phase, to be compared by its prompt.

    Args:
        entry: its `request_id`, `messages` and `stand_ins`.
    """
    return Row(
        entry["request_id"],
        [*entry["messages"], {"role": "assistant", "content": ""}],
        "",
        0,
        stand_ins=tuple(StandIn(**place) for place in entry["stand_ins"] or ()),
    )


def surrogates_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the texts of the surrogates in a row's turns and answer."""
    texts = [*(turn["content"] for turn in entry["messages"]), entry["answer"]]
    return sorted({texts[p["turn"]][p["start"] : p["end"]] for p in entry["stand_ins"] or ()})
