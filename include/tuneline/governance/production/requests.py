"""The logged requests of a day, what becomes of each, and the table that says so.

`requests.parquet` has a line for each logged request; `reason` is null for a row that stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.artifacts.request_log import Reason
from tuneline.data.conversations.turn_checks import TEMPLATE_MARKERS, check_turns
from tuneline.data.tables.rows import Message, Row, StandIn, schema_of
from tuneline.models.tool_turns import TOOL_MARKERS

Refusal = tuple[Reason, str | None]

# How the gateway says that a request ended. An answer whose tokens were improbable came whole.
LOW_CONFIDENCE = "low_confidence"
_ANSWERED = frozenset({"ok", LOW_CONFIDENCE})
_BROKEN = frozenset({"died_midstream", "connection_lost", "client_aborted"})
_TOOL_ROLES = frozenset({"tool", "function"})
_FINISHES = {
    "tool_calls": Reason.TOOL_USE,
    "function_call": Reason.TOOL_USE,
    "length": Reason.CUT_OFF,
    "content_filter": Reason.FILTERED,
}


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """Return the turns of a logged request with its answer as the last one."""
    # `developer` is the newer name of the role that models are trained with as `system`.
    named = {"developer": "system"}
    turns = [
        {"role": named.get(turn["role"], turn["role"]), "content": turn["content"] or ""}
        for turn in row["messages"]
    ]
    return [*turns, {"role": "assistant", "content": row["answer"]}]


def question(row: Mapping[str, Any]) -> list[Message]:
    """Return the last user turn that says something, with an empty answer; empty without one."""
    turns = [turn["content"] or "" for turn in row["messages"] or [] if turn["role"] == "user"]
    asked = [text for text in turns if text.strip()]
    if not asked:
        return []
    return [{"role": "user", "content": asked[-1]}, {"role": "assistant", "content": ""}]


def refusal(row: Mapping[str, Any]) -> Refusal | None:
    """Return the reason and its detail for which a logged request can't be used, None if it can."""
    status, finish, turns = row["status"], row["finish_reason"], row["messages"]
    if status not in _ANSWERED:
        return (Reason.BROKEN_STREAM if status in _BROKEN else Reason.ERROR_STATUS), status
    if not question(row):
        return Reason.NO_TEXT, None
    if any(turn["role"] in _TOOL_ROLES for turn in turns):
        return Reason.TOOL_USE, "role"
    if finish in _FINISHES:
        return _FINISHES[finish], finish
    if not (row["answer"] or "").strip():
        return Reason.EMPTY_ANSWER, None
    fault = check_turns(conversation(row), (*TEMPLATE_MARKERS, *TOOL_MARKERS))
    # The text after the code quotes the turn.
    return (Reason.MALFORMED, fault.partition(":")[0]) if fault else None


# Rows in memory as Python objects at once, while a table is read or written.
STRIDE = 1 << 13

_TYPES = {
    "time": pa.timestamp("ms", "UTC"),
    "in_review": pa.bool_(),
    **dict.fromkeys("prompt_tokens completion_tokens n_tokens seen".split(), pa.int64()),
    **dict.fromkeys("confidence sample_rate similarity weight novelty".split(), pa.float64()),
    **{column.name: column.type for column in schema_of(("messages", "stand_ins"))},
}


def _schema(names: str) -> pa.Schema:
    return pa.schema([(name, _TYPES.get(name, pa.string())) for name in names.split()])


# As logged. The name of the API key is left behind, since a key may belong to one person; its hash
# shows which rows are from one client.
FACTS = _schema(
    "request_id time model_version confidence served_by fallback_reason status prompt_tokens "
    "completion_tokens sample_rate"
)
TEXTS = _schema("messages answer stand_ins n_tokens")
OUTCOME = _schema(
    "reason detail of of_day similarity seen weight resembles resembles_row novelty stratum "
    "in_review key_hash"
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
    weight: float  # requests that it stands for by the sampling of the log, with merged ones
    fallback_reason: str | None
    status: str
    confidence: float | None
    key_hash: str
    row: int | None = None  # in the table of scrubbed texts; None without a text
    text: str = ""  # normalised prompt, by which it is compared
    reason: Reason | None = None
    detail: str | None = None  # a status or code, never text of the request
    of: str | None = None  # request id of the row that stays in its place
    of_day: str | None = None  # of that row, YYYY-MM-DD, if it is an earlier one
    similarity: float | None = None  # to that row, or to the row of the reference that it resembles
    seen: int = 1  # logged requests that it stands for, itself and those merged into it
    resembles: str | None = None  # split of the row of the reference; None: not compared
    resembles_row: str | None = None
    novelty: float | None = None  # share of its 5-grams that are new
    stratum: str | None = None  # None if it may not be drawn for review
    in_review: bool = False

    def leave(self, reason: Reason, detail: str | None = None) -> None:
        """Take it out of the day."""
        self.reason, self.detail = reason, detail


def requests_of(log: pa.Table) -> list[Request]:
    """Return the logged requests; all of them stay."""
    names = ["request_id", "sample_rate", "fallback_reason", "status", "confidence", "key", "model"]
    columns = (log[name].to_pylist() for name in names)
    return [
        Request(one, weight_of(rate), why, status, sure, hash_text(f"{model}\0{key}"))
        for one, rate, why, status, sure, key, model in zip(*columns, strict=True)
    ]


def hash_text(text: str) -> str:
    """Return the first 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def position(request_id: str) -> str:
    """Return a text by which requests are in a random order, the same one each time."""
    # The gateway samples its log by a hash of the id alone: drawn by that one, the two would agree.
    return hash_text(f"review:{request_id}")


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
        [*(entry["messages"] or ()), {"role": "assistant", "content": ""}],
        "",
        0,
        stand_ins=tuple(StandIn(**place) for place in entry["stand_ins"] or ()),
    )
