"""The logged requests of a day, what becomes of each, and the table that says so.

`requests.parquet` has a line for each logged request, in the order of the log. `reason` is null for
a row that stays. Texts are scrubbed, and null where a reason came before scrubbing or from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.data.tables.rows import Row, StandIn
from tuneline.governance.production.usable import Reason

# Rows in memory as Python objects at once, while a table is read or written.
STRIDE = 1 << 13

_TEXT, _NUMBER, _SHARE = pa.string(), pa.int64(), pa.float64()
_TURN = pa.struct([("role", _TEXT), ("content", _TEXT)])
_PLACE = pa.struct(
    [("turn", pa.int32()), ("start", pa.int32()), ("end", pa.int32()), ("entity", _TEXT)]
)
# As logged. The name of the API key is left behind: a key may belong to one person.
FACTS = pa.schema(
    [
        ("request_id", _TEXT),
        ("time", pa.timestamp("ms", "UTC")),
        ("model_version", _TEXT),
        ("confidence", _SHARE),
        ("served_by", _TEXT),
        ("fallback_reason", _TEXT),
        ("status", _TEXT),
        ("prompt_tokens", _NUMBER),
        ("completion_tokens", _NUMBER),
        ("sample_rate", _SHARE),
    ]
)
TEXTS = pa.schema(
    [
        ("messages", pa.list_(_TURN)),
        ("answer", _TEXT),
        ("stand_ins", pa.list_(_PLACE)),
        ("n_tokens", _NUMBER),
    ]
)
OUTCOME = pa.schema(
    [
        ("reason", _TEXT),
        ("detail", _TEXT),
        ("of", _TEXT),
        ("of_day", _TEXT),
        ("similarity", _SHARE),
        ("seen", _NUMBER),
        ("weight", _SHARE),
        ("resembles", _TEXT),
        ("resembles_row", _TEXT),
        ("novelty", _SHARE),
        ("stratum", _TEXT),
        ("in_review", pa.bool_()),
        ("inclusion_probability", _SHARE),
    ]
)
REQUESTS = pa.schema([*FACTS, *TEXTS, *OUTCOME])


@dataclass(slots=True)
class Request:
    """What becomes of a logged request; most attributes are columns of `requests.parquet`.

    `weight` is the number of requests that it stands for by the sampling of the log, `seen` that of
    logged ones. `of` is the row that stays in its place, on `of_day` if that is an earlier one.
    `detail` is a status or code, never text; `row` its number among the scrubbed texts; `novelty`
    the share of its 5-grams that are new.
    """

    request_id: str
    weight: float
    fallback_reason: str | None
    status: str
    confidence: float | None
    row: int | None = None
    text: str = ""
    reason: Reason | None = None
    detail: str | None = None
    of: str | None = None
    of_day: str | None = None
    similarity: float | None = None
    seen: int = 1
    resembles: str | None = None
    resembles_row: str | None = None
    novelty: float | None = None
    stratum: str | None = None
    in_review: bool = False
    inclusion_probability: float | None = None

    def leave(self, reason: Reason, detail: str | None = None) -> None:
        """Take it out of the day."""
        self.reason, self.detail = reason, detail


def requests_of(log: pa.Table) -> list[Request]:
    """Return the logged requests; all of them stay."""
    columns = ["request_id", "sample_rate", "fallback_reason", "status", "confidence"]
    return [
        Request(
            entry["request_id"],
            weight_of(entry["sample_rate"]),
            entry["fallback_reason"],
            entry["status"],
            entry["confidence"],
        )
        for entry in log.select(columns).to_pylist()
    ]


def staying(requests: Sequence[Request]) -> list[Request]:
    """Return the requests that are rows of the day."""
    return [request for request in requests if request.reason is None]


def weight_of(sample_rate: float | None) -> float:
    """Return the number of requests that a logged one stands for."""
    return 1 / sample_rate if sample_rate and 0 < sample_rate <= 1 else 1.0


def write_requests(
    path: Path, facts: pa.Table, scrubbed: Path, requests: Sequence[Request]
) -> None:
    """Write `requests.parquet` from the log's facts, the scrubbed texts and what became of each."""
    texts = pq.read_table(scrubbed)
    done = 0
    with pq.ParquetWriter(path, REQUESTS, compression="zstd") as writer:
        for start in range(0, len(requests), STRIDE):
            some = requests[start : start + STRIDE]
            rows = [None if r.row is None else r.row - done for r in some]
            count = sum(request.row is not None for request in some)
            here = texts.slice(done, count).take(pa.array(rows, pa.int64()))
            outcome = pa.Table.from_pylist([asdict(request) for request in some], OUTCOME)
            columns = [*facts.slice(start, STRIDE).columns, *here.columns, *outcome.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=REQUESTS))
            done += count


def batches_of(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, some at a time."""
    with pq.ParquetFile(path) as table:
        yield from table.iter_batches(STRIDE, columns=list(columns))


def compared_row(entry: Mapping[str, Any]) -> Row:
    """Return a request as a row of the data phase, to be compared by its prompt."""
    return Row(
        "",
        [*entry["messages"], {"role": "assistant", "content": ""}],
        "",
        0,
        stand_ins=tuple(StandIn(**place) for place in entry["stand_ins"] or ()),
    )
