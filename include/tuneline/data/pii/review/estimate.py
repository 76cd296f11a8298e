"""Estimate from a person's review how much personal data scrubbing left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.pii.canaries.kinds import KINDS, entity_of
from tuneline.data.pii.intervals import Bounds, weighted_count
from tuneline.data.pii.leak_estimate import PER_ROWS
from tuneline.data.pii.leak_limits import decides, leak_limit
from tuneline.data.pii.review.draw import Drawn, draw_rows
from tuneline.data.pii.review.sheet import Answer, check_pieces, read_sheet
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.evidence import Measurement, measure
from tuneline.store import local_file

GUESS = "a model's guess: canaries alone, no person has looked at rows"


@dataclass(frozen=True)
class Reviewed:
    """A review of a run's rows.

    Attributes:
        weights: weight of each reviewed row.
        strata: stratum of each.
        missed: entities that a person found in each, one for each piece.
        foreign: number of its rows that are not those that this run would have drawn; the review
            is then of other data and does not count.
    """

    weights: Sequence[float] = ()
    strata: Sequence[str] = ()
    missed: Sequence[Sequence[str]] = ()
    foreign: int = 0

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the table of the review, which holds no text."""
        return {
            "stratum": list(self.strata),
            "weight": list(self.weights),
            "missed": ["+".join(kinds) for kinds in self.missed],
        }

    def left(self, kind: str | None = None) -> Bounds:
        """Return how many pieces are left in all rows, of one entity or of all."""
        strata: dict[str, int] = {}
        weights: dict[str, float] = {}
        for stratum, weight, kinds in zip(self.strata, self.weights, self.missed, strict=True):
            pieces = sum(kind in (None, entry) for entry in kinds)
            strata[stratum] = strata.get(stratum, 0) + pieces
            weights[stratum] = weight
        return weighted_count(list(strata.values()), [weights[name] for name in strata])

    def leaks(self, hits: Mapping[str, int]) -> dict[str, Bounds]:
        """Return the share that leaks of each entity of which something was missed.

        Args:
            hits: values found in all rows, by entity.
        """
        kinds = sorted({kind for entry in self.missed for kind in entry})
        return {kind: _share_left(self.left(kind), hits.get(kind, 0)) for kind in kinds}


def _share_left(left: Bounds, found: int) -> Bounds:
    return Bounds(*(count / (count + found) if count else 0.0 for count in left))


def read_review(address: str, rows: Sequence[Row], scratch: Path) -> Reviewed:
    """Read a filled sheet and hold it against the rows of a run.

    Args:
        address: path, `file://` or `s3://` address of the sheet.
        rows: scrubbed rows that are kept.
        scratch: folder for a file from a bucket.

    Raises:
        UserError: if it is missing, not a filled sheet, or names text that is not in its row.
    """
    try:
        raw = local_file(address, scratch).read_bytes()
    except OSError as error:
        raise UserError(
            f"data.pii_review: {address} can't be read: {error.strerror}; name a sheet that "
            "`tuneline data review-pii` wrote"
        ) from None
    return reviewed(read_sheet(raw, address), rows)


def reviewed(answers: Sequence[Answer], rows: Sequence[Row]) -> Reviewed:
    """Hold answers against the rows that would be drawn from a run.

    Raises:
        UserError: if an answer names text that is not in its row.
    """
    drawn = draw_rows(rows, len(answers))
    known = {(row.row_id, row.row_hash) for row in drawn}
    foreign = sum((answer.row_id, answer.row_hash) not in known for answer in answers)
    if foreign or len(known) != len(answers):
        return Reviewed(foreign=max(foreign, 1))
    check_pieces(answers, drawn)
    return _joined(answers, drawn)


def _joined(answers: Iterable[Answer], drawn: Iterable[Drawn]) -> Reviewed:
    by_id = {row.row_id: row for row in drawn}
    pairs = [(answer, by_id[answer.row_id]) for answer in answers]
    return Reviewed(
        [row.weight for _, row in pairs],
        [row.stratum for _, row in pairs],
        [
            [entity_of(kind) if kind in KINDS else kind for kind, _ in answer.missed]
            for answer, _ in pairs
        ],
    )


def review_measurements(
    review: Reviewed | None, hits: Counter[str], rows: int, config: DataConfig
) -> list[Measurement]:
    """Return what the estimate rests on and, with a review, what a person found.

    An entity fails if even the lower end of its interval is above its limit: a small review can
    prove a leak, but not its absence.

    Args:
        review: the review; None without one.
        hits: values found in all rows, by entity.
        rows: number of rows that are kept.
        config: the data section.
    """
    seen = 0 if review is None else len(review.weights)
    basis = f"canaries and a person's review of {seen} rows" if seen else GUESS
    found = [measure("leak_estimate_rests_on", basis, "text"), measure("review_rows", seen, "rows")]
    if review is None:
        return found
    found.append(
        measure("review_rows_of_other_data", review.foreign, "rows", "==", 0, on_breach="warn")
    )
    if not seen:
        return found
    left = review.left()
    for name, value in (("", left.value), ("_at_least", left.lower), ("_at_most", left.upper)):
        per_rows = round(value * PER_ROWS / rows, 4)
        found.append(measure(f"review_left_per_1000_rows{name}", per_rows, "values per 1000 rows"))
    for entity, share in review.leaks(hits).items():
        found += [
            measure(f"review_leak_{entity}", share.value, "share"),
            measure(f"review_leak_{entity}_at_most", share.upper, "share"),
            measure(
                f"review_leak_{entity}_at_least",
                share.lower,
                "share",
                "<=",
                leak_limit(entity, config),
                on_breach="fail" if decides(entity, config.pii_profile) else "warn",
            ),
        ]
    return found
