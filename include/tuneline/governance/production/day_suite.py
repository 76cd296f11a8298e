"""What is expected of a curated day's table: no request is lost, invented or counted twice.

The table is read back, and compared with the log; nothing is shared with the code that wrote it.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuneline.data.gates.suites import Rule, Suite, among, between, total
from tuneline.data.tables.rows import HOLDOUT
from tuneline.governance.production.requests import weight_of
from tuneline.governance.production.review_sample import Stratum
from tuneline.governance.production.usable import MERGED, REPLACED, Reason

_COLUMNS = (
    "request_id time reason of seen weight resembles similarity novelty stratum in_review "
    "inclusion_probability"
).split()
# A sum of weights in another order differs in the last digits.
_ROUNDING = 1e-9


def day_suite(path: Path, facts: pa.Table, day: date, offered: int) -> Suite:
    """Return what is expected of a day's table, of which `offered` rows were drawn."""
    frame = pq.read_table(path, columns=_COLUMNS).to_pandas()
    answers = pq.read_table(path, columns=["answer"])["answer"]
    ids = set(facts["request_id"].to_pylist())
    weight = sum(map(weight_of, facts["sample_rate"].to_pylist()))
    return Suite(
        "requests", _with_checks(frame, answers, ids, day), _rules(len(ids), weight, offered)
    )


def _with_checks(
    frame: pd.DataFrame, answers: pa.ChunkedArray, ids: set[str], day: date
) -> pd.DataFrame:
    """Return the table with a column for each rule that joins several."""
    first = pd.Timestamp(day, tz="UTC")
    times = pd.to_datetime(frame["time"], utc=True)
    kept, reviewed = frame["reason"].isna(), frame["in_review"].astype(bool)
    # A merged request is counted by the row that stays in its place.
    counted = ~frame["reason"].isin(sorted(MERGED))
    replaced = frame["reason"].isin(sorted(REPLACED))
    return frame.drop(columns=["time"]).assign(
        of_the_log=frame["request_id"].isin(ids),
        of_the_day=(times >= first) & (times < first + timedelta(days=1)),
        counted=frame["seen"].where(counted, 0),
        counted_weight=frame["weight"].where(counted, 0.0),
        replaced_by_nothing=(replaced & frame["of"].isna()).astype(int),
        kept_without_text=(kept & pc.is_null(answers).to_pandas()).astype(int),
        offered=reviewed.astype(int),
        offered_and_gone=(reviewed & ~kept).astype(int),
        # Null for rows that are not offered, which expectations pass over.
        offered_like=frame["resembles"].where(reviewed),
        offered_without_chance=(reviewed & ~(frame["inclusion_probability"].fillna(0) > 0)).astype(
            int
        ),
    )


def _rules(requests: int, weight: float, offered: int) -> list[Rule]:
    return [
        Rule("ExpectTableRowCountToEqual", {"value": requests}),
        Rule("ExpectColumnValuesToNotBeNull", {"column": "request_id"}),
        Rule("ExpectColumnValuesToBeUnique", {"column": "request_id"}),
        among("of_the_log", True),
        among("of_the_day", True),
        among("reason", *map(str, Reason)),
        total("counted", requests, requests),
        total("counted_weight", weight * (1 - _ROUNDING), weight * (1 + _ROUNDING)),
        total("replaced_by_nothing", 0, 0),
        total("kept_without_text", 0, 0),
        between("seen", 1, None),
        between("weight", 1, None),
        between("similarity", 0, 1),
        between("novelty", 0, 1),
        between("inclusion_probability", 0, 1),
        among("stratum", *map(str, Stratum)),
        total("offered", offered, offered),
        total("offered_and_gone", 0, 0),
        total("offered_without_chance", 0, 0),
        # A reviewed row may be trained on, so none may be like a held-out one.
        Rule("ExpectColumnValuesToNotBeInSet", {"column": "offered_like", "value_set": [HOLDOUT]}),
    ]
