"""Take the rows of other gateways into the ledger, and their prompts into the production log.

Both know a row by its id, so that a file may be imported again: the ledger leaves out what it has,
and the log's part has a name that follows from its rows, so that it is replaced.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tuneline.artifacts.request_log import (
    LoggedRequest,
    folder_name,
    part_key,
    table_of,
    write_part,
)
from tuneline.errors import UserError
from tuneline.serving.gateway.ledger_database import Place, UsageRow, open_writer
from tuneline.serving.gateway.prices import Rates
from tuneline.serving.gateway.production_log import (
    LoggedTexts,
    UnscrubbedTexts,
    known_finish,
    scrubbed_texts,
)
from tuneline.serving.gateway.scrubbing import Scrub
from tuneline.serving.gateway.users import KeptUser, kept_user
from tuneline.serving.usage_import import litellm, otel
from tuneline.serving.usage_import.call import ImportedCall, RowError
from tuneline.serving.usage_import.lines import Line, rows_of
from tuneline.serving.usage_import.report import Rejection, Report
from tuneline.store import Store, open_store

_BATCH = 1000
_SCRUBBED_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """How rows are taken.

    Attributes:
        source: the form of the files.
        store: root of the store for prompts, None to leave them.
        currency: currency of the costs that the rows state, and of `rates`.
        users: what is kept of a row's user.
        rates: the price of rows that state no cost.
    """

    source: Literal["litellm", "otel"]
    store: str | None
    currency: str
    users: KeptUser
    rates: Rates


def take(files: Sequence[str], ledger: Place, settings: Settings, scrub: Scrub) -> Report:
    """Take the rows of files.

    Args:
        files: paths, for LiteLLM also URLs of its database.
        ledger: the ledger; made if it is missing.
        settings: how rows are taken.
        scrub: function that removes personal data from conversations.

    Raises:
        UserError: if a file can't be read, or the ledger or the store can't be used.
        RetryableError: if a database can't be reached.
    """
    for file in files:
        if "://" not in file and not Path(file).is_file():
            raise UserError(f"{file}: no such file; nothing was imported")
    store = open_store(settings.store) if settings.store else None
    report = Report()
    writer = open_writer(ledger)
    try:
        for file in files:
            for calls in _batches(_calls(file, settings.source, report)):
                if store:
                    report.logged += _log(store, calls, scrub)
                new = writer.insert([_usage(call, settings) for call in calls])
                report.taken += new
                report.known += len(calls) - new
    finally:
        writer.close()
    return report


def _calls(file: str, source: str, report: Report) -> Iterator[ImportedCall]:
    if source == "litellm":
        name, lines = litellm.database_rows(file) if "://" in file else _file_lines(file)
        for number, row in lines:
            report.rows += 1
            try:
                if isinstance(row, RowError):
                    raise row
                yield litellm.call_of(row)
            except RowError as error:
                report.rejected.append(Rejection(f"{name}:{number}", str(error)))
        return
    name, lines = _file_lines(file)
    for number, batch in lines:
        yield from _span_calls(f"{name}:{number}", batch, report)


def _span_calls(place: str, batch: object, report: Report) -> Iterator[ImportedCall]:
    """Yield the calls of a line; a line that is no batch of spans counts as one rejected row."""
    try:
        if isinstance(batch, RowError):
            raise batch
        found = list(otel.spans_of(batch))
    except RowError as error:
        report.rows += 1
        report.rejected.append(Rejection(place, str(error)))
        return
    for number, (resource, span) in enumerate(found, 1):
        if not otel.is_call(span):
            report.passed_over += 1
            continue
        report.rows += 1
        try:
            yield otel.call_of(resource, span)
        except RowError as error:
            report.rejected.append(Rejection(f"{place}: span {number}", str(error)))


def _file_lines(file: str) -> tuple[str, Iterator[Line]]:
    return file, rows_of(Path(file))


def _batches(calls: Iterator[ImportedCall]) -> Iterator[list[ImportedCall]]:
    while batch := [call for _, call in zip(range(_BATCH), calls, strict=False)]:
        yield batch


def _usage(call: ImportedCall, settings: Settings) -> UsageRow:
    cost = call.cost
    if cost is None:
        cost = settings.rates.cost(call.prompt_tokens, call.completion_tokens)
    return UsageRow(
        request_id=call.request_id,
        attempt=1,
        time=call.time,
        kind="imported",
        key=call.key,
        model=call.model,
        upstream=call.upstream,
        model_served=call.model_served,
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        completion_tokens=call.completion_tokens,
        estimated=False,
        cost=cost,
        currency=settings.currency,
        latency_ms=call.latency_ms,
        ttft_ms=call.ttft_ms,
        mean_logprob=None,
        status=call.status,
        served=call.status == "ok",
        fallback_reason=None,
        user_id=kept_user(call.user, settings.users),
    )


def _log(store: Store, calls: Sequence[ImportedCall], scrub: Scrub) -> int:
    """Write the prompts of some calls to the log, a part for each model and day."""
    parts: defaultdict[tuple[str, str], list[LoggedRequest]] = defaultdict(list)
    told = [call for call in calls if call.messages]
    for start in range(0, len(told), _SCRUBBED_AT_ONCE):
        some = told[start : start + _SCRUBBED_AT_ONCE]
        given = [UnscrubbedTexts(c.messages or [], c.answer, c.request_id) for c in some]
        for call, texts in zip(some, scrubbed_texts(given, scrub), strict=True):
            row = _logged(call, texts)
            parts[folder_name(row.model), row.day.isoformat()].append(row)
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        for (folder, day), rows in parts.items():
            ids = "\n".join(row.request_id for row in rows)
            part = f"import-{hashlib.sha256(ids.encode()).hexdigest()[:32]}"
            table, _ = table_of(b"".join(row.line() for row in rows))
            write_part(store, part_key(folder, day, part), table, Path(scratch) / "part")
    return sum(map(len, parts.values()))


def _logged(call: ImportedCall, texts: LoggedTexts) -> LoggedRequest:
    messages, answer, redactions = texts
    return LoggedRequest(
        request_id=call.request_id,
        time=datetime.fromtimestamp(call.time, UTC),
        key=call.key,
        model=call.model,
        model_version=None,
        messages=messages,
        answer=answer,
        latency_ms=call.latency_ms,
        ttft_ms=call.ttft_ms,
        confidence=None,
        served_by=call.upstream,
        fallback_reason=None,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        finish_reason=known_finish(call.finish_reason),
        status=call.status,
        sample_rate=1.0,
        redactions=redactions,
    )
