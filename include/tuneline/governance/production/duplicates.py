"""Find the questions that were asked more than once: within a day, and on earlier days.

As in `deduplication`, rows are compared by their prompt without the system turn and the text that
nearly all prompts share, surrogates masked. Within a day MinHash finds the clusters, of which one
row stays; these are compared with one earlier day at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuneline.data.near_duplicates.compared_text import similarity_texts
from tuneline.data.near_duplicates.deduplicate import find_clusters
from tuneline.data.near_duplicates.minhash import nearest
from tuneline.data.tables.rows import Row
from tuneline.governance.production.tables import Rejected, batches_of, compared_row, weight_of
from tuneline.governance.production.vocabulary import Reason


@dataclass
class Requests:
    """A day's scrubbed requests, as far as they are compared; one entry each.

    Attributes:
        ids: request ids.
        texts: normalised prompts, empty once a row is out.
        fallback: True if another upstream answered.
        weights: number of requests that each stands for.
        stays: numbers of the rows that stay, ascending.
        seen: number of logged requests that a row stands for, by its number.
        sums: sum of their weights.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fallback: list[bool] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    stays: list[int] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)
    sums: dict[int, float] = field(default_factory=dict)

    @property
    def texts_that_stay(self) -> list[str]:
        """The prompts of the rows that stay."""
        return [self.texts[number] for number in self.stays]

    def leave(self, gone: Iterable[int]) -> None:
        """Take rows out."""
        out = set(gone)
        self.stays = [number for number in self.stays if number not in out]
        for number in out:
            self.texts[number] = ""


_COMPARED = ("request_id", "messages", "stand_ins")


def read_requests(path: Path, sample: Sequence[Row]) -> Requests:
    """Read the table of scrubbed requests; all rows stay.

    Args:
        path: table of `SCRUBBED`.
        sample: rows of the day, for the text that prompts share.
    """
    found = Requests()
    for batch in batches_of(path, (*_COMPARED, "fallback_reason", "sample_rate")):
        entries = batch.to_pylist()
        rows = [compared_row(entry) for entry in entries]
        found.ids += [row.row_id for row in rows]
        found.texts += similarity_texts(rows, sample)
        found.fallback += [entry["fallback_reason"] is not None for entry in entries]
        found.weights += [weight_of(entry["sample_rate"]) for entry in entries]
    found.stays = list(range(len(found.ids)))
    found.seen = dict.fromkeys(found.stays, 1)
    found.sums = dict(enumerate(found.weights))
    return found


def read_prompts(path: Path, sample: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the request ids of a curated table and the prompts, normalised as `read_requests`."""
    ids: list[str] = []
    texts: list[str] = []
    for batch in batches_of(path, _COMPARED):
        rows = [compared_row(entry) for entry in batch.to_pylist()]
        ids += [row.row_id for row in rows]
        texts += similarity_texts(rows, sample)
    return ids, texts


def merge_within_day(requests: Requests, threshold: float) -> list[Rejected]:
    """Leave one row of each cluster: the first that the model itself answered, else the first."""
    clusters, _ = find_clusters(requests.texts, threshold)
    members: dict[int, list[int]] = defaultdict(list)
    for number, root in enumerate(clusters):
        members[root].append(number)
    rejected: list[Rejected] = []
    for group in members.values():
        kept = min(group, key=lambda number: (requests.fallback[number], number))
        requests.seen[kept] = len(group)
        requests.sums[kept] = sum(requests.weights[number] for number in group)
        for number in group:
            if number != kept:
                same = requests.texts[number] == requests.texts[kept]
                rejected.append(
                    Rejected(
                        requests.ids[number],
                        Reason.DUPLICATE if same else Reason.NEAR_DUPLICATE,
                        requests.weights[number],
                        of=requests.ids[kept],
                    )
                )
    out = {entry.request_id for entry in rejected}
    requests.leave(number for number, name in enumerate(requests.ids) if name in out)
    return rejected


def drop_seen_before(
    requests: Requests, day: str, ids: Sequence[str], texts: Sequence[str], threshold: float
) -> list[Rejected]:
    """Take out the rows whose question an earlier day has.

    What they stood for goes with them: their weight is that of all requests merged into them.

    Args:
        requests: the rows.
        day: the earlier day, YYYY-MM-DD.
        ids: request ids of its rows.
        texts: prompts of its rows.
        threshold: Jaccard similarity from which two prompts are near-duplicates.
    """
    near = nearest(requests.texts_that_stay, texts, threshold)
    gone = {requests.stays[at]: match for at, match in near.items()}
    requests.leave(gone)
    return [
        Rejected(
            requests.ids[number],
            Reason.SEEN_BEFORE,
            requests.sums[number],
            of=ids[other],
            of_day=day,
            similarity=round(similarity, 4),
            seen=requests.seen[number],
        )
        for number, (other, similarity) in sorted(gone.items())
    ]
