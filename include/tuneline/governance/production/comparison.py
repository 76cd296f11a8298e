"""Compare a day's rows with earlier days and a dataset, and draw those to review."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.data.tables.rows import HOLDOUT, Row
from tuneline.evidence import FileRef
from tuneline.governance.production.curated_day import (
    CURATED,
    EVIDENCE,
    CuratedDay,
    StratumCount,
    open_day,
)
from tuneline.governance.production.duplicates import Requests, drop_seen_before, read_prompts
from tuneline.governance.production.reference import (
    Resemblance,
    known_grams,
    novelty,
    read_reference,
    resemblances,
)
from tuneline.governance.production.review_sample import Drawn, draw, stratum_of
from tuneline.governance.production.settings import CurationSettings
from tuneline.governance.production.tables import Found, Rejected
from tuneline.governance.production.vocabulary import Stratum
from tuneline.store import Store


@dataclass(frozen=True)
class Job:
    """The day that is curated: of which model, from and into which store, by which settings."""

    store: Store
    model: str
    day: date
    settings: CurationSettings


@dataclass
class Compared:
    """What the comparisons of the rows that stay have found; numbers count these rows.

    Attributes:
        novelty: share of each prompt that is new; None if there was nothing to compare with.
        resembles: the row of the reference that a prompt resembles.
        inputs: the reference and the earlier days.
    """

    novelty: Sequence[float | None] = ()
    resembles: Mapping[int, Resemblance] = field(default_factory=dict)
    inputs: list[FileRef] = field(default_factory=list)


def compare(
    job: Job, requests: Requests, rejected: list[Rejected], sample: Sequence[Row]
) -> Compared:
    """Compare the rows that stay with earlier days, then with the reference.

    Args:
        job: the day.
        requests: its rows; those that an earlier day has are taken out.
        rejected: list that gets these.
        sample: rows of the day, for the text that prompts share.

    Raises:
        UserError: if the reference is no dataset.
    """
    settings = job.settings
    threshold = settings.data.near_duplicate_jaccard
    compared = Compared()
    known = known_grams([])
    for earlier in _earlier_days(job):
        compared.inputs.append(_day_ref(earlier))
        ids, texts = _prompts(earlier, sample)
        rejected += drop_seen_before(requests, earlier.evidence.day, ids, texts, threshold)
        if settings.reference is None:
            known = known_grams([texts], known)
    if settings.reference is not None:
        reference = read_reference(settings.reference, settings.data, sample)
        compared.inputs.append(reference.file)
        compared.resembles = resemblances(requests.texts_that_stay, reference, threshold)
        known = known_grams(reference.texts.values())
    compared.novelty = [None] * len(requests.stays)
    if len(known):
        compared.novelty = novelty(requests.texts_that_stay, known)
    return compared


def _earlier_days(job: Job) -> Iterator[CuratedDay]:
    """Yield the earlier curated days in which a question counts as seen, the latest first."""
    for back in range(1, job.settings.curation.lookback_days + 1):
        earlier = open_day(job.store, job.model, job.day - timedelta(days=back))
        if earlier is not None and earlier.evidence.rows_kept:
            yield earlier


def _day_ref(day: CuratedDay) -> FileRef:
    return FileRef(
        name=f"curated/{day.evidence.day}",
        uri=day.store.uri_of(f"{day.prefix}/{EVIDENCE}"),
        sha256=day.evidence_sha256,
        bytes=len(day.evidence.dump()),
        rows=day.evidence.rows_kept,
    )


def _prompts(earlier: CuratedDay, sample: Sequence[Row]) -> tuple[list[str], list[str]]:
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        path = Path(scratch) / CURATED
        earlier.fetch(CURATED, path)
        return read_prompts(path, sample)


def findings(
    path: Path, requests: Requests, compared: Compared, settings: CurationSettings
) -> tuple[Found, dict[str, StratumCount]]:
    """Draw the review sample.

    Args:
        path: table of `SCRUBBED`.
        requests: its rows.
        compared: what is known of those that stay.
        settings: the settings.

    Returns:
        The columns of the rows that stay, and the size of each stratum.
    """
    columns = ["fallback_reason", "status", "confidence"]
    taken = pq.read_table(path, columns=columns).take(pa.array(requests.stays, pa.int64()))
    strata: dict[int, Stratum] = {}
    for at, row in enumerate(taken.to_pylist()):
        near = compared.resembles.get(at)
        # A reviewed row may be trained on, and one like a held-out row must not.
        if near is None or near.split != HOLDOUT:
            strata[at] = stratum_of(**row, novelty=compared.novelty[at], settings=settings)
    ids = [requests.ids[requests.stays[at]] for at in strata]
    drawn = dict(zip(strata, draw(ids, list(strata.values()), settings), strict=True))
    found = Found()
    for at, number in enumerate(requests.stays):
        near, chance = compared.resembles.get(at), drawn.get(at)
        found.seen.append(requests.seen[number])
        found.weight.append(requests.sums[number])
        found.resembles.append(near.split if near else None)
        found.resembles_row.append(near.row_id if near else None)
        found.similarity.append(near.similarity if near else None)
        found.novelty.append(compared.novelty[at])
        found.stratum.append(str(strata[at]) if at in strata else None)
        found.in_review.append(chance is not None and chance.chosen)
        found.inclusion_probability.append(chance.probability if chance else None)
    return found, _sizes(strata, drawn)


def _sizes(strata: Mapping[int, Stratum], drawn: Mapping[int, Drawn]) -> dict[str, StratumCount]:
    sizes: dict[str, StratumCount] = {}
    for stratum in sorted(set(strata.values())):
        chances = [drawn[at] for at, own in strata.items() if own == stratum]
        sizes[str(stratum)] = StratumCount(
            rows=len(chances),
            in_review=sum(chance.chosen for chance in chances),
            inclusion_probability=chances[0].probability,
        )
    return sizes
