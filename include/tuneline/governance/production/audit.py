"""Check a curated day's files against the log: no request is lost, invented or counted twice.

The check reads the files back and shares no state with the code that wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuneline.evidence import Measurement, measure
from tuneline.governance.production.vocabulary import MERGED, REPLACED, Reason, Stratum

# A sum of weights in another order differs in the last digits.
_ROUNDING = 1e-9


def audit(log: pa.Table, curated: Path, rejected: Path, review: Path) -> list[Measurement]:
    """Derive from the files whether requests and their weight are conserved.

    Args:
        log: columns `request_id` and `weight` of the logged requests.
        curated: `curated.parquet`.
        rejected: `rejected.parquet`.
        review: `review.jsonl`.
    """
    columns = "request_id seen weight similarity novelty stratum in_review inclusion_probability"
    kept = pq.read_table(curated, columns=columns.split())
    gone = pq.read_table(rejected, columns="request_id reason of seen weight".split())
    return [
        *_requests(log, kept, gone),
        *_frequencies(log, kept, gone),
        *_ranges(kept, gone),
        *_review(kept, review),
    ]


def _requests(log: pa.Table, kept: pa.Table, gone: pa.Table) -> list[Measurement]:
    logged = log["request_id"]
    out = pa.chunked_array([*kept["request_id"].chunks, *gone["request_id"].chunks], pa.string())
    difference = len(logged) - kept.num_rows - gone.num_rows
    return [
        measure("requests_in", len(logged), "requests"),
        measure("rows_kept", kept.num_rows, "rows"),
        measure("requests_rejected", gone.num_rows, "requests"),
        measure("requests_unaccounted", difference, "requests", "==", 0),
        measure("requests_lost", _absent(logged, out), "requests", "==", 0),
        measure("requests_invented", _absent(out, logged), "requests", "==", 0),
        measure("requests_twice", len(out) - pc.count_distinct(out).as_py(), "requests", "==", 0),
    ]


def _absent(some: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    """Return the number of ids that are not among others."""
    return int(pc.sum(pc.invert(pc.is_in(some, value_set=others.combine_chunks()))).as_py() or 0)


def _frequencies(log: pa.Table, kept: pa.Table, gone: pa.Table) -> list[Measurement]:
    """Merged requests are counted by the row that they went into, all others by their own."""
    merged = pc.is_in(gone["reason"], value_set=pa.array(sorted(MERGED), pa.string()))
    own = gone.filter(pc.invert(merged))
    seen = _sum(kept["seen"]) + _sum(own["seen"])
    logged = _sum(log["weight"])
    off = abs(_sum(kept["weight"]) + _sum(own["weight"]) - logged) / max(logged, 1.0)
    return [
        measure("requests_merged", gone.num_rows - own.num_rows, "requests"),
        measure("requests_not_seen", log.num_rows - int(seen), "requests", "==", 0),
        measure("weight_difference", off, "share", "<=", _ROUNDING),
    ]


def _sum(column: pa.ChunkedArray) -> float:
    return float(pc.sum(column).as_py() or 0.0)


def _ranges(kept: pa.Table, gone: pa.Table) -> list[Measurement]:
    unknown = sum(reason not in set(Reason) for reason in gone["reason"].to_pylist())
    replaced = pa.array(sorted(REPLACED), pa.string())
    duplicates = gone.filter(pc.is_in(gone["reason"], value_set=replaced))
    strata = pc.drop_null(kept["stratum"]).to_pylist()
    return [
        measure("unknown_reasons", unknown, "requests", "==", 0),
        measure("duplicates_of_nothing", duplicates["of"].null_count, "requests", "==", 0),
        measure("unknown_strata", sum(s not in set(Stratum) for s in strata), "rows", "==", 0),
        measure("seen_below_1", _outside(kept["seen"], 1, None), "rows", "==", 0),
        measure("weight_below_1", _outside(kept["weight"], 1, None), "rows", "==", 0),
        measure("similarity_out_of_range", _outside(kept["similarity"], 0, 1), "rows", "==", 0),
        measure("novelty_out_of_range", _outside(kept["novelty"], 0, 1), "rows", "==", 0),
        measure(
            "probability_out_of_range",
            _outside(kept["inclusion_probability"], 0, 1),
            "rows",
            "==",
            0,
        ),
    ]


def _outside(column: pa.ChunkedArray, low: float, high: float | None) -> int:
    """Return the number of values outside two limits; missing ones are not counted."""
    outside = pc.less(column, low)
    if high is not None:
        outside = pc.or_(outside, pc.greater(column, high))
    return int(pc.sum(outside).as_py() or 0)


def _review(kept: pa.Table, review: Path) -> list[Measurement]:
    """Every row marked for review is there, and no other; each had a chance to be drawn."""
    marked = kept.filter(kept["in_review"])
    with review.open(encoding="utf-8") as lines:
        offered = [json.loads(line)["request_id"] for line in lines]
    differing = set(offered) ^ set(marked["request_id"].to_pylist())
    chance = pc.fill_null(marked["inclusion_probability"], 0.0)
    return [
        measure("review_rows", len(offered), "rows"),
        measure(
            "review_rows_wrong", len(differing) + len(offered) - len(set(offered)), "rows", "==", 0
        ),
        measure(
            "review_rows_without_chance",
            int(pc.sum(pc.less_equal(chance, 0.0)).as_py() or 0),
            "rows",
            "==",
            0,
        ),
    ]
