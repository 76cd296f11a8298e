"""The gate of a curated day: Great Expectations over its tables as they lie in the store.

It reads neither text nor the log, and shares no code with the audit that a curation does before it
stores a day: ids, reasons, frequencies, shares and the review sample are judged a second time,
from what training would read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.data.gates.expectations import store_docs, validate
from tuneline.data.gates.suites import Rule, Suite, among, between, total
from tuneline.data.tables.rows import HOLDOUT
from tuneline.evidence import Verdict
from tuneline.governance.production.curated_day import CURATED, REJECTED, CuratedDay
from tuneline.governance.production.vocabulary import MERGED, REPLACED, Reason, Stratum

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "tuneline/curated-gate/1"
_GATE, _DOCS = "gate.json", "data_docs"
_KEPT = (
    "request_id",
    "time",
    "seen",
    "weight",
    "resembles",
    "similarity",
    "novelty",
    "stratum",
    "in_review",
    "inclusion_probability",
)
_GONE = ("request_id", "reason", "of", "seen", "weight")


@dataclass(frozen=True)
class DayGate:
    """The result of a day's gate.

    Attributes:
        verdict: `pass` or `fail`; `not_applicable` for a day without requests.
        summary: the failures in one line, or the number of expectations that hold.
        expectations: number of expectations checked.
        failures: each broken expectation, as text.
        docs: address of the Data Docs; None if nothing could be checked.
    """

    verdict: Verdict
    summary: str
    expectations: int
    failures: list[str]
    docs: str | None = None


def gate_day(curated: CuratedDay) -> DayGate:
    """Check a curated day; write `gate.json` and the Data Docs into its folder.

    Raises:
        CorruptObject: if a table has other bytes than the evidence of the day states.
    """
    if not curated.evidence.requests_in:
        return DayGate(Verdict.NOT_APPLICABLE, "no requests, so nothing to check", 0, [])
    with tempfile.TemporaryDirectory(prefix="tuneline-gate-") as folder:
        root = Path(folder)
        kept = _table(curated, CURATED, _KEPT, root)
        gone = _table(curated, REJECTED, _GONE, root)
        suites = day_suites(curated, kept, gone)
        verdict, failures, count = validate(suites, root / "gx")
        docs = store_docs(curated.store, f"{curated.prefix}/{_DOCS}", root / "gx")
    summary = "; ".join(failures) or f"{count} expectations of the day's tables hold"
    result = DayGate(verdict, summary, count, failures, docs)
    document = {"schema": SCHEMA, **asdict(result)}
    raw = json.dumps(document, indent=1, ensure_ascii=False).encode()
    curated.store.put_bytes(f"{curated.prefix}/{_GATE}", raw)
    return result


def day_suites(curated: CuratedDay, kept: pd.DataFrame, gone: pd.DataFrame) -> list[Suite]:
    """Return what is expected of a day's tables; of an empty table nothing but its size is.

    Args:
        curated: the day, whose evidence states the sizes.
        kept: the columns of `curated.parquet` without text.
        gone: those of `rejected.parquet`.
    """
    suites = [_requests(curated, kept, gone)]
    if len(kept):
        suites.append(Suite("curated_rows", *_kept_rows(curated, kept)))
    if len(gone):
        suites.append(Suite("rejected_requests", *_rejected(gone)))
    return suites


def _requests(curated: CuratedDay, kept: pd.DataFrame, gone: pd.DataFrame) -> Suite:
    """Every request of the day is in one table, once, and counted where it went."""
    import pandas as pd

    merged = gone["reason"].isin(sorted(MERGED))
    frame = pd.DataFrame(
        {
            "request_id": [*kept["request_id"], *gone["request_id"]],
            # A merged request is counted by the row that stays in its place.
            "counted": [*kept["seen"], *gone["seen"].where(~merged, 0)],
            "kept": [1] * len(kept) + [0] * len(gone),
        }
    )
    entry = curated.evidence
    return Suite(
        "requests",
        frame,
        [
            Rule("ExpectTableRowCountToEqual", {"value": entry.requests_in}),
            Rule("ExpectColumnValuesToNotBeNull", {"column": "request_id"}),
            Rule("ExpectColumnValuesToBeUnique", {"column": "request_id"}),
            total("counted", entry.requests_in, entry.requests_in),
            total("kept", entry.rows_kept, entry.rows_kept),
        ],
    )


def _kept_rows(curated: CuratedDay, kept: pd.DataFrame) -> tuple[pd.DataFrame, Sequence[Rule]]:
    import pandas as pd

    frame = kept.copy()
    first = pd.Timestamp(date.fromisoformat(curated.evidence.day), tz="UTC")
    times = pd.to_datetime(frame["time"], utc=True)
    frame["of_the_day"] = (times >= first) & (times < first + timedelta(days=1))
    offered = frame["in_review"].astype(bool)
    # Null for rows that are not offered, which expectations pass over.
    frame["offered_like"] = frame["resembles"].where(offered)
    frame["offered"] = offered.astype(int)
    frame["offered_without_chance"] = (
        offered & ~(frame["inclusion_probability"].fillna(0) > 0)
    ).astype(int)
    drawn = sum(count.in_review for count in curated.evidence.strata.values())
    return frame.drop(columns=["time"]), [
        among("of_the_day", True),
        between("seen", 1, None),
        between("weight", 1, None),
        between("similarity", 0, 1),
        between("novelty", 0, 1),
        between("inclusion_probability", 0, 1),
        among("stratum", *(str(stratum) for stratum in Stratum)),
        # A reviewed row may be trained on, so none may be like a held-out one.
        Rule(
            "ExpectColumnValuesToNotBeInSet",
            {"column": "offered_like", "value_set": [HOLDOUT]},
        ),
        total("offered", drawn, drawn),
        total("offered_without_chance", 0, 0),
    ]


def _rejected(gone: pd.DataFrame) -> tuple[pd.DataFrame, Sequence[Rule]]:
    frame = gone.copy()
    replaced = frame["reason"].isin(sorted(REPLACED))
    frame["replaced_by_nothing"] = (replaced & frame["of"].isna()).astype(int)
    return frame, [
        Rule("ExpectColumnValuesToNotBeNull", {"column": "reason"}),
        among("reason", *(str(reason) for reason in Reason)),
        total("replaced_by_nothing", 0, 0),
        between("seen", 1, None),
        between("weight", 1, None),
    ]


def _table(curated: CuratedDay, name: str, columns: Sequence[str], root: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    path = root / name
    curated.fetch(name, path)
    return pq.read_table(path, columns=list(columns)).to_pandas()
