"""Compare a day's prompts with a dataset: which resemble its rows, and how much is new in each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.compared_text import similarity_texts
from tuneline.data.near_duplicates.minhash import nearest
from tuneline.data.near_duplicates.shingles import (
    TEXT_BITS,
    Hashes,
    batches,
    distinct,
    shingle_chars,
    text_of,
)
from tuneline.data.pii.replace.residuals import Find
from tuneline.data.pii.replace.scrubber import shape_finder
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
from tuneline.governance.production.tables import STRIDE
from tuneline.store import sha256_file

# The split that a row resembles is the first of these: held out is what must not be trained on.
_FIRST = (HOLDOUT, VALIDATION, TRAIN)
_GRAM = np.uint64((1 << (64 - TEXT_BITS)) - 1)


@dataclass
class Reference:
    """A dataset's prompts by split, normalised, and the file that they come from."""

    file: FileRef
    ids: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Resemblance:
    """The row of a dataset that a prompt is a near-duplicate of."""

    split: str
    row_id: str
    similarity: float


def read_reference(address: str, config: DataConfig, sample: Sequence[Row]) -> Reference:
    """Read the prompts of a dataset.

    Args:
        address: path, `file://` or `s3://` address of a `dataset.parquet`.
        config: settings of the data phase, for personal data with a shape, which is masked.
        sample: rows of the day, for the text that prompts share.

    Raises:
        UserError: if it does not exist or is no dataset.
    """
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
                found = Reference(file)
                for batch in table.iter_batches(STRIDE, columns=["row_id", "messages", "split"]):
                    _add(found, batch, find, sample)
        except (OSError, ValueError, KeyError, pa.ArrowException):
            raise UserError(
                f"--reference {address} is not a dataset of the data phase (a Parquet file with "
                "the columns row_id, messages and split)"
            ) from None
    return found


def _add(found: Reference, batch: pa.RecordBatch, find: Find, sample: Sequence[Row]) -> None:
    entries = batch.to_pylist()
    rows = [_masked_row(entry["row_id"], entry["messages"], find) for entry in entries]
    texts = similarity_texts(rows, sample)
    for entry, text in zip(entries, texts, strict=True):
        found.ids.setdefault(entry["split"], []).append(entry["row_id"])
        found.texts.setdefault(entry["split"], []).append(text)


def _masked_row(row_id: str, messages: list[dict[str, str]], find: Find) -> Row:
    """Return a row whose surrogates are marked; a dataset does not say where they are."""
    places = tuple(
        StandIn(turn, hit.start, hit.end, hit.entity)
        for turn, message in enumerate(messages[:-1])
        for hit in find(message["content"])
    )
    return Row(row_id, messages, "", 0, stand_ins=places)


def resemblances(
    texts: Sequence[str], reference: Reference, threshold: float
) -> dict[int, Resemblance]:
    """Return the prompts that are near-duplicates of a row of the dataset, by their number."""
    found: dict[int, Resemblance] = {}
    others = sorted(reference.texts.keys() - set(SPLITS))
    for split in (*_FIRST, *others):
        near = nearest(texts, reference.texts.get(split, []), threshold)
        for number, (other, similarity) in near.items():
            row = Resemblance(split, reference.ids[split][other], round(similarity, 4))
            found.setdefault(number, row)
    return found


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
