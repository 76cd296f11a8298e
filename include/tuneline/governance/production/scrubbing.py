"""Scrub a day's requests by the scrubber of the data phase, block by block.

The log was scrubbed already, one request at a time; here the model's profile and actions hold.
Of a request that can't be used the prompt stays: drift is looked for in all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.artifacts.request_log import Reason
from tuneline.data.near_duplicates.compared_text import similarity_texts
from tuneline.data.pii.replace.scrubber import Scrubbed, make_scrubber
from tuneline.data.pii_scrubbing import LEAST_ROWS, reason_to_reject
from tuneline.data.rendering.renderer import Renderer, TemplateRefused
from tuneline.data.tables.rows import Message, Row
from tuneline.evidence import FileRef
from tuneline.governance.production.requests import (
    STRIDE,
    TEXTS,
    Refusal,
    Request,
    batches_of,
    compared_row,
    conversation,
    question,
    refusal,
)
from tuneline.governance.production.settings import CurationSettings
from tuneline.machine.workers import worker_count
from tuneline.terminal import track

# Each block starts its own workers, which load a model each, so it must be large.
BLOCK = 1 << 16
# Rows to know the text that prompts share by, evenly spread over the day.
SAMPLED = 4_096


@dataclass
class ScrubbedDay:
    """What scrubbing a day found; `sample` rows show the text that prompts share."""

    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    rows: int = 0
    sample: list[Row] = field(default_factory=list)
    logged: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    foreign: int = 0

    def log(self, uri: str, rows: int) -> FileRef:
        """Return a reference to the log of the day."""
        digest = self.digest.hexdigest()
        return FileRef(name="logs", uri=uri, sha256=digest, bytes=self.bytes, rows=rows)


def scrub_day(
    log: pa.Table,
    requests: Sequence[Request],
    settings: CurationSettings,
    renderer: Renderer | None,
    path: Path,
) -> ScrubbedDay:
    """Write the scrubbed texts of a day; each request gets its row, or the reason for none."""
    scrubber = make_scrubber(settings.data)
    day = ScrubbedDay()
    blocks = max(1, math.ceil(log.num_rows / BLOCK))
    # Blocks of one size: in a small last one a shared text would not be seen as shared.
    size = math.ceil(log.num_rows / blocks)
    every = max(1, log.num_rows // SAMPLED)
    with pq.ParquetWriter(path, TEXTS, compression="zstd") as writer:
        for number in track(range(blocks), blocks, "scrubbing"):
            start = number * size
            asked, turns = _asked(log.slice(start, size), requests[start : start + size], day)
            # Surrogates are drawn by the prompt: equal prompts stay equal.
            keys = [
                hashlib.sha256(
                    "".join(f"{m['role']}\0{m['content']}\0" for m in messages[:-1]).encode()
                ).hexdigest()
                for messages in turns
            ]
            results = scrubber.scrub(keys, turns, worker_count(len(turns), LEAST_ROWS))
            for first in range(0, len(asked), STRIDE):
                part = slice(first, first + STRIDE)
                some = _entries(asked[part], results[part], renderer, settings, day)
                writer.write_table(pa.Table.from_pylist(some, TEXTS))
                day.sample += [
                    compared_row(entry) for n, entry in enumerate(some, day.rows) if n % every == 0
                ]
                day.rows += len(some)
    # Each request with a row gets its normalised prompt.
    rows = (request for request in requests if request.row is not None)
    for batch in batches_of(path, ("messages", "stand_ins")):
        for text in similarity_texts(map(compared_row, batch.to_pylist()), day.sample):
            next(rows).text = text
    return day


def _asked(
    block: pa.Table, requests: Sequence[Request], day: ScrubbedDay
) -> tuple[list[Request], list[list[Message]]]:
    """Return the requests of a block with a prompt, and their turns: all, or the question alone."""
    asked: list[Request] = []
    turns: list[list[Message]] = []
    for start in range(0, block.num_rows, STRIDE):
        some = requests[start : start + STRIDE]
        for row, request in zip(block.slice(start, STRIDE).to_pylist(), some, strict=True):
            line = json.dumps(row, default=str, separators=(",", ":")).encode()
            day.digest.update(line)
            day.bytes += len(line)
            day.logged.update({entry["type"]: entry["count"] for entry in row["redactions"] or ()})
            refused = refusal(row)
            if refused is not None:
                request.leave(*refused)
            if messages := conversation(row) if refused is None else question(row):
                asked.append(request)
                turns.append(messages)
    return asked, turns


def _entries(
    requests: Sequence[Request],
    results: Sequence[Scrubbed],
    renderer: Renderer | None,
    settings: CurationSettings,
    day: ScrubbedDay,
) -> list[dict[str, Any]]:
    """Return the texts that hold no personal data; the answer of a request that stays alone.

    With a base model a request stays if it fits the model's context.
    """
    usable = [r.messages for q, r in zip(requests, results, strict=True) if q.reason is None]
    counts = iter(_token_counts(renderer, usable))
    entries: list[dict[str, Any]] = []
    for request, result in zip(requests, results, strict=True):
        reason, tokens = reason_to_reject(result), None
        if request.reason is None:
            tokens = next(counts)
            if reason is not None:
                refused = Reason(reason.partition(":")[0])
                request.leave(refused, "+".join(result.refused) or None)
            elif isinstance(tokens, tuple):
                request.leave(*tokens)
            elif tokens is not None and tokens > settings.data.max_tokens:
                request.leave(Reason.TOO_LONG, f"{tokens} tokens")
        if reason is not None:
            continue
        day.found.update(result.hits)
        day.foreign += result.foreign is not None
        request.row = day.rows + len(entries)
        entries.append(
            {
                "messages": result.messages[:-1],
                "answer": None if request.reason else result.messages[-1]["content"],
                "stand_ins": [asdict(place) for place in result.surrogates],
                "n_tokens": tokens if isinstance(tokens, int) else None,
            }
        )
    return entries


def _token_counts(
    renderer: Renderer | None, rows: Iterable[Sequence[Message]]
) -> list[int | Refusal | None]:
    """Count the tokens of rendered rows; a refusal stands for a row that can't be rendered."""
    rows = list(rows)
    if renderer is None:
        return [None] * len(rows)
    counts: list[int | Refusal | None] = []
    texts: list[str] = []
    for messages in rows:
        try:
            texts.append(renderer.text(messages))
            counts.append(0)
        except TemplateRefused:
            counts.append((Reason.TEMPLATE_REFUSED, None))
    counted = iter(renderer.count(texts))
    return [entry if isinstance(entry, tuple) else next(counted) for entry in counts]
