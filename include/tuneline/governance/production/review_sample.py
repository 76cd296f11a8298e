"""Which rows of a day are new, which resemble a dataset, and which people are asked about."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.artifacts.request_log import Reason
from tuneline.config import DataConfig
from tuneline.data.near_duplicates.compared_text import similarity_texts
from tuneline.data.near_duplicates.deduplicate import find_clusters
from tuneline.data.near_duplicates.minhash import nearest
from tuneline.data.near_duplicates.shingles import (
    TEXT_BITS,
    Hashes,
    batches,
    distinct,
    shingle_chars,
    text_of,
)
from tuneline.data.pii.replace.scrubber import Find, shape_finder
from tuneline.data.tables.rows import (
    HOLDOUT,
    SPLITS,
    TRAIN,
    VALIDATION,
    Row,
    StandIn,
    fetch_dataset,
)
from tuneline.errors import UserError
from tuneline.evidence import FileRef
from tuneline.governance.production.curated_days import CuratedDay, StratumCount
from tuneline.governance.production.requests import (
    LOW_CONFIDENCE,
    STRIDE,
    Request,
    compared_row,
    position,
    staying,
)
from tuneline.governance.production.settings import CurationSettings
from tuneline.store import sha256_file

# The split that a row resembles is the first of these: held out is what must not be trained on.
_FIRST = (HOLDOUT, VALIDATION, TRAIN)
# A row that was compared, and is like no row of the reference.
NOTHING = "nothing"
_GRAM = np.uint64((1 << (64 - TEXT_BITS)) - 1)


class Stratum(StrEnum):
    """The group of rows that a row is drawn for review from; the first that fits."""

    FALLBACK = "fallback"
    LOW_CONFIDENCE = "low_confidence"
    NOVEL = "novel"
    RANDOM = "random"


def merge_within_day(requests: Sequence[Request], threshold: float) -> None:
    """Leave one row of each cluster: the first that the model itself answered, else the first."""
    rows = staying(requests)
    clusters, _ = find_clusters([row.text for row in rows], threshold)
    members: dict[int, list[Request]] = defaultdict(list)
    for row, root in zip(rows, clusters, strict=True):
        members[root].append(row)
    for group in members.values():
        kept = min(group, key=lambda row: row.fallback_reason is not None)
        for row in group:
            if row is not kept:
                row.leave(Reason.DUPLICATE if row.text == kept.text else Reason.NEAR_DUPLICATE)
                row.of = kept.request_id
        kept.seen, kept.weight = len(group), sum(row.weight for row in group)


def compare(
    requests: Sequence[Request],
    earlier: Iterable[CuratedDay],
    settings: CurationSettings,
    sample: Sequence[Row],
) -> list[FileRef]:
    """Compare the rows that stay with earlier days, then with the reference; return the files read.

    Rows whose question an earlier day (the latest first) has leave with all that was merged into
    them.
    """
    threshold = settings.data.near_duplicate_jaccard
    inputs: list[FileRef] = []
    known = known_grams([])
    for day in earlier:
        inputs.append(day.ref)
        ids, texts = _prompts(day, sample)
        rows = staying(requests)
        near = nearest([row.text for row in rows], texts, threshold)
        for number, (other, similarity) in near.items():
            row = rows[number]
            row.leave(Reason.SEEN_BEFORE)
            row.of, row.of_day, row.similarity = ids[other], day.evidence.day, round(similarity, 4)
        if settings.reference is None:
            known = known_grams([texts], known)
    rows = staying(requests)
    if settings.reference is not None:
        file, prompts = read_reference(settings.reference, settings.data, sample)
        inputs.append(file)
        # A held-out row comes first.
        for split in (*_FIRST, *sorted(prompts.keys() - set(SPLITS))):
            texts = [text for _, text in prompts[split]]
            near = nearest([row.text for row in rows], texts, threshold)
            for number, (other, similarity) in near.items():
                row = rows[number]
                if row.resembles is None:
                    row.resembles, row.resembles_row = split, prompts[split][other][0]
                    row.similarity = round(similarity, 4)
        known = known_grams([text for _, text in some] for some in prompts.values())
    for row in rows:
        row.resembles = row.resembles or NOTHING
    if len(known):
        shares = novelty([row.text for row in rows], known)
        for row, share in zip(rows, shares, strict=True):
            row.novelty = share
    return inputs


def _prompts(day: CuratedDay, sample: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the request ids of a day's rows, and their prompts as those of this day."""
    ids: list[str] = []
    texts: list[str] = []
    columns = ("request_id", "messages", "stand_ins", "reason")
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        for batch in day.requests(Path(scratch), columns):
            entries = batch.filter(batch["reason"].is_null()).to_pylist()
            ids += [entry["request_id"] for entry in entries]
            texts += similarity_texts(map(compared_row, entries), sample)
    return ids, texts


def draw_sample(requests: Sequence[Request], settings: CurationSettings) -> dict[str, StratumCount]:
    """Draw the rows to review from their strata, in a random order of their ids.

    With a rate that share of each stratum is drawn, without one as many rows as its quota. No API
    key gives more than `review_per_key`, so that nobody decides alone what is reviewed.
    """
    strata: dict[Stratum, list[Request]] = defaultdict(list)
    for row in sorted(staying(requests), key=lambda row: position(row.request_id)):
        # A reviewed row may be trained on, and one like a held-out row must not.
        if row.resembles != HOLDOUT:
            strata[_stratum_of(row, settings)].append(row)
    sizes: dict[str, StratumCount] = {}
    of_key: Counter[str] = Counter()
    for stratum in filter(strata.get, Stratum):
        rows, rate = strata[stratum], settings.sample_rate
        quota: int = getattr(settings.curation, f"review_{stratum}")
        room = quota if rate is None else round(rate * len(rows))
        for row in rows:
            row.stratum = str(stratum)
            row.in_review = room > 0 and of_key[row.key_hash] < settings.curation.review_per_key
            of_key[row.key_hash] += row.in_review
            room -= row.in_review
        sizes[str(stratum)] = StratumCount(rows=len(rows), in_review=sum(r.in_review for r in rows))
    return sizes


def _stratum_of(row: Request, settings: CurationSettings) -> Stratum:
    """Return the stratum of a row, the first that fits."""
    if row.fallback_reason is not None:
        return Stratum.FALLBACK
    doubtful = row.confidence is not None and row.confidence < settings.governance.min_confidence
    if doubtful or row.status == LOW_CONFIDENCE:
        return Stratum.LOW_CONFIDENCE
    if row.novelty is not None and row.novelty >= settings.curation.novel_share:
        return Stratum.NOVEL
    return Stratum.RANDOM


def read_reference(
    address: str, config: DataConfig, sample: Sequence[Row]
) -> tuple[FileRef, dict[str, list[tuple[str, str]]]]:
    """Return the file of a dataset, and ids and prompts by split; UserError if it is none."""
    prompts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        path = fetch_dataset(address, Path(scratch), f"--reference {address}")
        find = shape_finder(config)
        try:
            with pq.ParquetFile(path) as table:
                file = FileRef(
                    name="reference",
                    uri=address,
                    sha256=sha256_file(path),
                    bytes=path.stat().st_size,
                    rows=table.metadata.num_rows,
                )
                for batch in table.iter_batches(STRIDE, columns=["row_id", "messages", "split"]):
                    entries = batch.to_pylist()
                    texts = similarity_texts((_row(entry, find) for entry in entries), sample)
                    for entry, text in zip(entries, texts, strict=True):
                        prompts[entry["split"]].append((entry["row_id"], text))
        except (OSError, ValueError, KeyError, pa.ArrowException):
            raise UserError(
                f"--reference {address} is not a dataset of the data phase (a Parquet file with "
                "the columns row_id, messages and split)"
            ) from None
    return file, prompts


def _row(entry: Mapping[str, Any], find: Find) -> Row:
    """Return a row whose surrogates are marked; a dataset does not say where they are."""
    places = tuple(
        StandIn(turn, hit.start, hit.end, hit.entity)
        for turn, message in enumerate(entry["messages"][:-1])
        for hit in find(message["content"])
    )
    return Row(entry["row_id"], entry["messages"], "", 0, stand_ins=places)


def known_grams(texts: Iterable[Sequence[str]], known: Hashes | None = None) -> Hashes:
    """Return the sorted hashes of the character 5-grams of texts, and of those known before."""
    known = np.empty(0, dtype=np.uint64) if known is None else known
    for some in texts:
        parts = [np.unique(distinct(shingle_chars(some[part])) & _GRAM) for part in batches(some)]
        known = np.unique(np.concatenate([known, *parts]))
    return known


def novelty(texts: Sequence[str], known: Hashes) -> list[float]:
    """Return for each text the share of its character 5-grams that are not known."""
    shares: list[float] = []
    for part in batches(texts):
        keys = distinct(shingle_chars(texts[part]))
        grams = keys & _GRAM
        at = np.minimum(np.searchsorted(known, grams), max(len(known) - 1, 0))
        fresh = known[at] != grams if len(known) else np.ones(len(grams), dtype=bool)
        count = part.stop - part.start
        total = np.bincount(text_of(keys), minlength=count)
        new = np.bincount(text_of(keys), weights=fresh, minlength=count)
        shares += np.round(new / np.maximum(total, 1), 4).tolist()
    return shares
