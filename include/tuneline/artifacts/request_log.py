"""The production log: `logs/<model>/<day>/<part>.parquet`, each part written whole, never changed.

Parts may overlap if a gateway was killed; readers see each request once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from tuneline.store import Store


class LoggedMessage(TypedDict):
    """A turn of a prompt."""

    role: str
    content: str


class Redactions(TypedDict):
    """The number of values of a type that were removed from a request and its answer."""

    type: str
    count: int


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request and its answer, without the personal data and secrets that were found in them.

    Attributes:
        model: the model that the client asked for.
        model_version: version of the model that answered; None if the configuration states none.
        weights_sha256: hash of the weights that answered; None as for `model_version`, and in rows
            of earlier gateways.
        answer: the text of the answer, as far as it came; None if there was none, or it could
        ttft_ms: time from the arrival to the first token; None if nothing was streamed.
        confidence: mean log-probability per token, nats; None if it was not asked for.
        finish_reason: why the answer ended, as the upstream says; None if it broke off.
        sample_rate: share of the requests that is logged; a row stands for its inverse.
        redactions: number of removed values by type; None if scrubbing failed.
    """

    request_id: str
    time: datetime
    key: str
    model: str
    model_version: str | None
    weights_sha256: str | None
    messages: list[LoggedMessage] | None
    answer: str | None
    latency_ms: float
    ttft_ms: float | None
    confidence: float | None
    served_by: str | None
    fallback_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    status: str
    sample_rate: float
    redactions: list[Redactions] | None

    @property
    def day(self) -> date:
        """The day of the partition that it belongs to, UTC."""
        return self.time.date()

    def line(self) -> bytes:
        """Return it as a line of JSON, with its newline."""
        values = {name: getattr(self, name) for name in COLUMNS}
        values["time"] = self.time.isoformat(timespec="milliseconds")
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"


class Reason(StrEnum):
    """Why a logged request gives no row of the curated day."""

    # No upstream answered, or the client's request was wrong; the detail is the status.
    ERROR_STATUS = "error_status"
    # The answer stops somewhere: the upstream died, or the client left.
    BROKEN_STREAM = "broken_stream"
    # The gateway could not scrub the text and logged none, or no user turn says anything.
    NO_TEXT = "no_text"
    EMPTY_ANSWER = "empty_answer"
    # The log has no tool calls, so that a conversation with tools is incomplete.
    TOOL_USE = "tool_use"
    # The answer reached the token limit; training on it would teach to stop mid-sentence.
    CUT_OFF = "cut_off"
    # The upstream's filter replaced the answer.
    FILTERED = "filtered"
    # Roles out of order, special tokens, broken Unicode; the detail is the check that failed.
    MALFORMED = "malformed"
    # `data.pii_actions` refuses rows with this kind of personal data.
    PII_REFUSED = "pii_refused"
    # A pattern still hits after scrubbing.
    RESIDUAL_PII = "residual_pii"
    # The chat template of the base model refuses the conversation.
    TEMPLATE_REFUSED = "template_refused"
    # More tokens than `data.max_tokens`.
    TOO_LONG = "too_long"
    # The same question stays in another row of the day.
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    # The same question, or nearly, stays in a row of an earlier day.
    SEEN_BEFORE = "seen_before"


# These requests are counted in `seen` and `weight` of the row that stays.
MERGED = frozenset({Reason.DUPLICATE, Reason.NEAR_DUPLICATE})
# In place of these requests another row stays, which is named.
REPLACED = MERGED | {Reason.SEEN_BEFORE}


COLUMNS = tuple(field.name for field in fields(LoggedRequest))


PREFIX = "logs"
_SUFFIX = ".parquet"

_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "datetime": pa.timestamp("ms", "UTC"),
    "list[LoggedMessage]": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "list[Redactions]": pa.list_(pa.struct([("type", pa.string()), ("count", pa.int64())])),
}
SCHEMA = pa.schema(
    [(one.name, _TYPES[str(one.type).removesuffix(" | None")]) for one in fields(LoggedRequest)]
)

# The same columns with 64-bit offsets: the texts of a busy day are more than 2 GiB.
_LARGE = pa.large_string()
_DAY = SCHEMA.set(
    SCHEMA.get_field_index("messages"),
    pa.field("messages", pa.large_list(pa.struct([("role", _LARGE), ("content", _LARGE)]))),
).set(SCHEMA.get_field_index("answer"), pa.field("answer", _LARGE))


def folder_name(model: str) -> str:
    """Return the name of a model's folder; a slash in the model's name must not make a folder."""
    return quote(model, safe="")


def table_of(lines: bytes) -> tuple[pa.Table, int]:
    """Return a table of `SCHEMA`, and how many lines of a spool are not such lines."""
    if not lines:
        return SCHEMA.empty_table(), 0
    try:
        return _parsed(lines), 0
    except pa.ArrowInvalid:
        # A crash of the machine can leave a torn line; the others are not lost for it.
        return _parsed_one_by_one(lines)


def part_key(folder: str, day: str, part: str) -> str:
    """Return the key of a part."""
    return f"{PREFIX}/{folder}/{day}/{part}{_SUFFIX}"


def write_part(store: Store, key: str, table: pa.Table, scratch: Path) -> None:
    """Write a part whole; one of the same key is replaced."""
    try:
        pq.write_table(table, scratch, compression="zstd")
        store.put_file(key, scratch)
        # The writer deletes its own copy now.
        store.flush()
    finally:
        scratch.unlink(missing_ok=True)


def days(store: Store, model: str) -> list[date]:
    """Return the days of which a model has logged requests, the earliest first."""
    prefix = f"{PREFIX}/{folder_name(model)}"
    names = {key.removeprefix(f"{prefix}/").split("/", 1)[0] for key in _parts(store, prefix)}
    return sorted(date.fromisoformat(name) for name in names)


def read_day(store: Store, model: str, day: date) -> pa.Table:
    """Read the logged requests of a model and a day.

    Returns:
        A table with the columns of `SCHEMA`, ordered by time, with one row for each request id;
        without rows if nothing was logged.

    Raises:
        CorruptObject: if the bytes of a part are not those that were written.
        TunelineError: see `Store.get_file`.
    """
    tables = [_DAY.empty_table()]
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        path = Path(scratch) / "part"
        for key in _parts(store, f"{PREFIX}/{folder_name(model)}/{day.isoformat()}"):
            store.get_file(key, path)
            tables.append(pq.read_table(path, schema=_DAY, memory_map=False))
    table = pa.concat_tables(tables)
    numbered = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    firsts = numbered.group_by("request_id").aggregate([("row", "min")])["row_min"]
    return table.take(firsts).sort_by([("time", "ascending"), ("request_id", "ascending")])


def _parts(store: Store, prefix: str) -> Iterator[str]:
    return (key for key in store.keys(prefix) if key.endswith(_SUFFIX))


def _parsed(lines: bytes) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(lines),
        # One block: a line may be as long as a prompt.
        read_options=pj.ReadOptions(block_size=len(lines) + 1, use_threads=False),
        parse_options=pj.ParseOptions(
            explicit_schema=SCHEMA, unexpected_field_behavior="error", newlines_in_values=False
        ),
    )


def _parsed_one_by_one(lines: bytes) -> tuple[pa.Table, int]:
    tables, torn = [SCHEMA.empty_table()], 0
    for line in lines.splitlines():
        try:
            tables.append(_parsed(line))
        except pa.ArrowInvalid:
            torn += 1
    return pa.concat_tables(tables), torn
