"""The production log: requests and answers, scrubbed, for the store's partitions.

The event loop only takes the request; a thread has it scrubbed by another process and appends it
to the spool, so that nothing that was not scrubbed touches a disk. Another thread uploads what the
spool has gathered. Neither can hold up or fail a request: what finds no room is dropped and
counted, and what can't be scrubbed in time is logged without text.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from sys import getsizeof
from typing import NamedTuple, TypeAlias

from tuneline.artifacts.request_log import LoggedMessage, LoggedRequest, Redactions, folder_name
from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.chain.attempt import Attempt, Call
from tuneline.serving.gateway.chain.upstream import message_texts
from tuneline.serving.gateway.config import ProductionLogConfig
from tuneline.serving.gateway.ledger.writer import BatchWriter
from tuneline.serving.gateway.logs.scrubbing import Scrub, ScrubbingFailed, ScrubbingProcess
from tuneline.serving.gateway.logs.spool import Spool, SpoolFull, Uploader
from tuneline.serving.gateway.metrics import Metrics
from tuneline.store import open_store

log = logging.getLogger("tuneline.gateway")

# A float, and its place in a list.
_LOGPROB_BYTES = 32
# Requests whose texts are scrubbed at once, and their characters.
_SCRUBBED_AT_ONCE, _CHARS_AT_ONCE = 32, 20_000
_WRITE_TIMEOUT_S = 5.0
_UPLOAD_TIMEOUT_S = 5.0
# A reason for drops that lasts is logged this often.
_REPORT_AGAIN_S = 600.0
# A role is the client's own string; others than these could hold anything.
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_FINISH_REASONS = {None, "stop", "length", "tool_calls", "function_call", "content_filter"}


@dataclass(frozen=True)
class _Entry:
    call: Call
    attempt: Attempt | None
    status: AttemptStatus
    latency_s: float
    size: int


class ProductionLog(BatchWriter[_Entry]):
    """The log of the requests that reached a model's chain.

    Raises:
        UserError: if the spool or the store's address can't be used.
    """

    def __init__(self, config: ProductionLogConfig, scrub: Scrub, metrics: Metrics) -> None:
        self._config = config
        self._scrub = scrub
        self._process = ScrubbingProcess()
        self._metrics = metrics
        store = open_store(config.store)
        self._spool = Spool(
            config.spool,
            limit_bytes=config.spool_bytes,
            part_rows=config.part_rows,
            part_seconds=config.part_seconds,
        )
        self._uploader = Uploader(self._spool, store, metrics)
        # Each counter has one thread that writes it, so neither needs a lock.
        self._bytes_taken = 0
        self._bytes_done = 0
        # Entries at the front of the queue that are in the spool, while others behind them are not.
        self._appended = 0
        self._reported: dict[str, float] = {}
        self._declare_metrics()
        super().__init__(
            "production log",
            self._append,
            limit=config.queue_limit,
            interval_s=config.flush_interval_s,
        )

    def start(self) -> None:
        """Start to scrub, to write and to upload."""
        self._process.start(self._scrub)
        super().start()
        self._uploader.start()

    def scrub_with(self, scrub: Scrub) -> None:
        """Use another scrubber from the next row on, such as one of other languages."""
        self._scrub = scrub

    def note(self, call: Call, attempt: Attempt | None, status: AttemptStatus) -> None:
        """Take a request that has ended."""
        if not is_sampled(call.request_id, self._config.sample_rate):
            self._metrics.log_skipped.labels("sample").inc()
            return
        size = (attempt.request if attempt else call.request).memory
        if attempt is not None:
            size += sum(map(getsizeof, attempt.texts)) + _LOGPROB_BYTES * len(attempt.logprobs)
        waiting = self._bytes_taken - self._bytes_done
        if self.full or waiting + size > self._config.queue_bytes:
            self._drop("memory", 1, "the queue is full")
            return
        self._bytes_taken += size
        latency_s = time.perf_counter() - call.clock
        self.put(_Entry(call, attempt, status, latency_s, size))

    def note_unlogged(self) -> None:
        """Count a request whose key is not logged."""
        self._metrics.log_skipped.labels("key").inc()

    def close(self, timeout_s: float = _WRITE_TIMEOUT_S) -> list[_Entry]:
        """Write the waiting requests, try to upload them and stop."""
        if left := super().close(timeout_s):
            self._drop("shutdown", len(left), "the spool could not be written")
        self._process.close()
        self._uploader.close(_UPLOAD_TIMEOUT_S)
        self._spool.close()
        return left

    def _append(self, entries: list[_Entry]) -> None:
        """Scrub entries and bring them to the spool; after an error they come again."""
        while left := entries[self._appended :]:
            rows: defaultdict[tuple[str, date], list[LoggedRequest]] = defaultdict(list)
            lines: dict[str, bytes] = {}
            done: list[_Entry] = []
            began = time.monotonic()
            while some := _at_once(left[len(done) :]):
                done += some
                for entry, texts in self._texts(some):
                    with self._one_row():
                        row = self._row(entry, texts)
                        lines[row.request_id] = row.line()
                        rows[row.model, row.day].append(row)
                if time.monotonic() - began > self._config.flush_interval_s:
                    break
            self._write_rows(rows, lines)
            self._appended += len(done)
            self._bytes_done += sum(entry.size for entry in done)
        self._appended = 0

    def _write_rows(
        self, rows: Mapping[tuple[str, date], list[LoggedRequest]], lines: Mapping[str, bytes]
    ) -> None:
        for (model, day), some in rows.items():
            try:
                self._spool.append(folder_name(model), day, [lines[row.request_id] for row in some])
            except SpoolFull:
                self._drop("disk", len(some), "the spool is full")
                continue
            self._metrics.logged_rows.labels(model).inc(len(some))
            for row in some:
                for found in row.redactions or []:
                    self._metrics.redactions.labels(found["type"]).inc(found["count"])

    def _row(self, entry: _Entry, texts: LoggedTexts) -> LoggedRequest:
        call, attempt = entry.call, entry.attempt
        usage = attempt.row if attempt else None
        messages, answer, redactions = texts
        began = attempt.clock - call.clock if attempt else 0.0
        ttft_s = attempt.first_token_s if attempt else None
        confidence = usage.mean_logprob if usage else None
        reason = attempt.finish_reason if attempt else None
        return LoggedRequest(
            request_id=call.request_id,
            time=datetime.fromtimestamp(call.arrived, UTC),
            key=call.key,
            model=call.model,
            model_version=usage.model_version if usage else None,
            weights_sha256=usage.weights_sha256 if usage else None,
            messages=messages,
            answer=answer,
            latency_ms=round(entry.latency_s * 1e3, 3),
            ttft_ms=None if ttft_s is None else round((began + ttft_s) * 1e3, 3),
            confidence=confidence if math.isfinite(confidence or 0.0) else None,
            served_by=usage.upstream if usage else None,
            fallback_reason=usage.fallback_reason if usage else None,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            finish_reason=reason if reason in _FINISH_REASONS else "other",
            status=str(entry.status),
            sample_rate=self._config.sample_rate,
            redactions=redactions,
        )

    @contextmanager
    def _one_row(self) -> Iterator[None]:
        """Drop a row that can't be made, which must not hold up others."""
        try:
            yield
        except Exception as error:
            self._drop("row", 1, f"a row can't be made ({type(error).__name__})")

    def _texts(self, entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, LoggedTexts]]:
        given: list[tuple[_Entry, UnscrubbedTexts]] = []
        for entry in entries:
            with self._one_row():
                given.append((entry, unscrubbed(entry.call, entry.attempt)))
        scrub = partial(self._process.scrub, self._scrub)
        texts = scrubbed_texts([texts for _, texts in given], scrub) if given else []
        if failed := sum(messages is None for messages, _, _ in texts):
            self._metrics.scrub_failures.inc(failed)
        return zip((entry for entry, _ in given), texts, strict=True)

    def _drop(self, reason: str, count: int, why: str) -> None:
        self._metrics.log_dropped.labels(reason).inc(count)
        now = time.monotonic()
        if now - self._reported.get(reason, -math.inf) > _REPORT_AGAIN_S:
            self._reported[reason] = now
            name = "tuneline_gateway_production_log_dropped_total"
            log.error("production log: requests are dropped: %s; %s counts them", why, name)

    def _declare_metrics(self) -> None:
        self._metrics.gauge(
            "production_log_pending",
            "Requests that wait for the spool.",
            lambda: {(): float(self.pending)},
        )
        self._metrics.gauge(
            "production_log_spool_bytes",
            "Bytes in the spool, which the store does not have yet.",
            lambda: {(): float(self._spool.size)},
        )


def _at_once(entries: Sequence[_Entry]) -> list[_Entry]:
    """Return the first entries, as many as are scrubbed at once."""
    size = 0
    some: list[_Entry] = []
    for entry in entries[:_SCRUBBED_AT_ONCE]:
        size += entry.size
        if some and size > _CHARS_AT_ONCE:
            break
        some.append(entry)
    return some


class UnscrubbedTexts(NamedTuple):
    """The prompt of a request (`role` and `content` of each turn), its answer and its id."""

    turns: Sequence[Mapping[str, str]]
    written: str | None
    request_id: str

    def conversation(self) -> list[dict[str, str]]:
        """Return the turns as they are scrubbed: known roles, valid text, the answer last."""
        turns = [
            *self.turns,
            *([{"role": "assistant", "content": self.written}] if self.written is not None else []),
        ]
        return [
            {
                "role": turn["role"] if turn["role"] in _ROLES else "other",
                # JSON can state lone surrogates, and UTF-8 cannot.
                "content": turn["content"].encode("utf-8", "replace").decode(),
            }
            for turn in turns
        ]


def unscrubbed(call: Call, attempt: Attempt | None) -> UnscrubbedTexts:
    """Return the texts of a request, without images and the prompt's tool calls."""
    asked = attempt.request if attempt else call.request
    turns = [
        {"role": message["role"], "content": "\n".join(message_texts(message))}
        for message in asked.messages
    ]
    return UnscrubbedTexts(turns, "".join(attempt.texts) if attempt else None, call.request_id)


# Prompt, answer, and what was removed from them; None each if scrubbing failed.
LoggedTexts: TypeAlias = tuple[list[LoggedMessage] | None, str | None, list[Redactions] | None]


def scrubbed_texts(given: Sequence[UnscrubbedTexts], scrub: Scrub) -> list[LoggedTexts]:
    """Return the texts of requests without personal data; what fails together is tried alone."""
    try:
        results = scrub([entry.conversation() for entry in given])
    except Exception as error:  # whatever it raises, the text must not be written
        if len(given) > 1:
            return [scrubbed_texts([entry], scrub)[0] for entry in given]
        why = error if isinstance(error, ScrubbingFailed) else type(error).__name__
        log.error("scrubbing %s failed: %s", given[0].request_id, why)
        return [(None, None, None)]
    found: list[LoggedTexts] = []
    for entry, (scrubbed, counts) in zip(given, results, strict=True):
        texts: list[LoggedMessage] = [
            {"role": turn["role"], "content": turn["content"]} for turn in scrubbed
        ]
        removed: list[Redactions] = [
            {"type": name, "count": count} for name, count in sorted(Counter(counts).items())
        ]
        answer = None if entry.written is None else texts.pop()["content"]
        found.append((texts, answer, removed))
    return found


def is_sampled(request_id: str, rate: float) -> bool:
    """Return True if a request is in a sample; every gateway decides alike."""
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2**64
