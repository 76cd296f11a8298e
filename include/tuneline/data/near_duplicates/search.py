"""Decide which rows are duplicates or contradictions, which of them stay, and the split of each.

Pure functions over rows: conflicts, clusters of near-duplicates (by MinHash), the row that stays of
each, the split by cluster, and a second search across the split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.boilerplate import common_affixes
from tuneline.data.near_duplicates.conversations import tie_conversations
from tuneline.data.near_duplicates.masked import masked_prompt
from tuneline.data.near_duplicates.minhash import near_pairs, nearest
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.near_duplicates.split import assign, cluster_hash, plan
from tuneline.data.near_duplicates.templates import differs_in_values_alone, varieties
from tuneline.data.tables.rows import HOLDOUT, TRAIN, VALIDATION, Row, chosen_of, column_of


@dataclass
class Deduplicated:
    """The decisions on a dataset; each list has one entry for each row that came in.

    Attributes:
        texts: normalised text by which a row is compared.
        cluster: number of its cluster of near-duplicates.
        reasons: reason for which it leaves, None if it stays.
        splits: its split, empty for a row that left before the split.
        conflict: True if another row asks the same and has another answer.
        exact_duplicates: number of rows that left as equal to another.
        near_pairs: number of pairs of near-duplicates with different texts.
        near_conflicts: number of clusters of different texts with different answers.
        missed: number of near-duplicates across the split that only the second search found.
        cross_similarity: greatest similarity, from the threshold on, of a kept row of training or
            validation to a row of a split that is held out from it.
        conversation: number of the group of rows that share its split, as they share a cluster or
            a conversation; None for a row that left before the split, and of an own hold-out.
        variety: True if it stays though it equals another once surrogates are masked.
    """

    texts: list[str]
    cluster: list[int]
    reasons: list[str | None]
    splits: list[str]
    conflict: list[bool]
    exact_duplicates: int = 0
    near_pairs: int = 0
    near_conflicts: int = 0
    missed: int = 0
    cross_similarity: list[float] = field(default_factory=list)
    conversation: list[int | None] = field(default_factory=list)
    variety: list[bool] = field(default_factory=list)


def similarity_texts(rows: Iterable[Row], among: Iterable[Row] | None = None) -> list[str]:
    """Return the normalised text by which each row is compared.

    Args:
        rows: the rows.
        among: the whole dataset, whose shared text is left out; None for `rows` itself.
    """
    own = list(map(_masked, rows))
    affixes = common_affixes(own if among is None else list(map(_masked, among)))
    return [normalise(affixes.own(text)) or normalise(text) for text in own]


def _masked(row: Row) -> str:
    """Return the turns before the answer, surrogates of personal data replaced by their type."""
    return "\n".join(text for _, text in masked_prompt(row))


def find_conflicts(rows: Sequence[Row]) -> list[list[int]]:
    """Return the groups of rows with one question and different answers, or different classes."""
    # Hashes in place of texts, most of which are asked once.
    groups: dict[bytes, list[int]] = {}
    meanings: list[bytes] = []
    for index, row in enumerate(rows):
        question = "\x00".join(normalise(m["content"]) for m in row.prompt)
        groups.setdefault(_digest(question), []).append(index)
        meanings.append(_digest(meaning(row)))
    return [g for g in groups.values() if len(g) > 1 and len({meanings[i] for i in g}) > 1]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def meaning(row: Row) -> str:
    """Return the class of a row, or its normalised answer if it has none."""
    return row.label if row.label is not None else normalise(row.answer)


def conflict_rejects(rows: Sequence[Row], group: Sequence[int], policy: str) -> list[int]:
    """Return the rows that the policy takes out of a group of contradicting rows."""
    free = [index for index in group if not rows[index].own_holdout]
    if policy == "reject_all":
        return free
    if policy == "keep":
        return []
    counts = Counter(meaning(rows[index]) for index in group).most_common(2)
    if counts[0][1] == counts[1][1]:
        return free
    return [index for index in free if meaning(rows[index]) != counts[0][0]]


def find_clusters(texts: Sequence[str], threshold: float) -> tuple[list[int], int]:
    """Find the clusters of near-duplicates by MinHash.

    Returns:
        The cluster of each text (the smallest row number in it), and the number of pairs of
        different texts that are near-duplicates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    distinct = [numbers.setdefault(text, len(numbers)) for text in texts]
    pairs = near_pairs(list(numbers), threshold)
    ends = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2).T
    shape = (len(numbers), len(numbers))
    near = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), shape)
    labels = connected_components(near, directed=False)[1][distinct]
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return first[cluster].tolist(), len(pairs)


def keep_of_cluster(rows: Sequence[Row], members: Sequence[int], policy: str) -> list[int]:
    """Return the rows of a cluster that stay.

    If the cluster has rows of the dataset's own hold-out, these stay and no others. Otherwise one
    row stays: of the commonest class the one with the longest text, then the smallest row id. With
    the policy `keep` one row of each class stays.
    """
    own = [index for index in members if rows[index].own_holdout]
    if own:
        return own

    def best(among: Sequence[int]) -> int:
        length = {i: sum(len(m["content"]) for m in rows[i].messages) for i in among}
        return min(among, key=lambda i: (-length[i], rows[i].row_id))

    by_meaning: dict[str, list[int]] = defaultdict(list)
    for index in members:
        by_meaning[meaning(rows[index])].append(index)
    if policy == "keep":
        return [best(group) for group in by_meaning.values()]
    most = max(map(len, by_meaning.values()))
    return [best([i for g in by_meaning.values() if len(g) == most for i in g])]


def deduplicate(rows: Sequence[Row], config: DataConfig) -> Deduplicated:
    """Find conflicts and near-duplicates, choose the rows that stay, split them, drop leaks."""
    texts = similarity_texts(rows)
    reasons: list[str | None] = [None] * len(rows)
    conflict = [False] * len(rows)
    for group in find_conflicts(rows):
        for index in group:
            conflict[index] = True
        for index in conflict_rejects(rows, group, config.label_conflicts):
            reasons[index] = f"label_conflict: {len(group)} rows ask the same, answers differ"
    cluster, pairs = find_clusters(texts, config.near_duplicate_jaccard)
    found = Deduplicated(texts, cluster, reasons, [""] * len(rows), conflict, near_pairs=pairs)
    found.variety = [False] * len(rows)
    _keep_few(rows, found, config)
    _split(rows, found, config)
    _drop_leaks(rows, found, config.near_duplicate_jaccard)
    return found


def _keep_few(rows: Sequence[Row], found: Deduplicated, config: DataConfig) -> None:
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(found.cluster):
        if found.reasons[index] is None:
            members[root].append(index)
    for group in members.values():
        if len(group) < 2:
            continue
        if len({meaning(rows[i]) for i in group}) > 1 and len({found.texts[i] for i in group}) > 1:
            found.near_conflicts += 1
        kept = keep_of_cluster(rows, group, config.label_conflicts)
        if not rows[kept[0]].own_holdout:
            more = varieties(rows, kept, group, config.template_repeats)
            for index in more:
                found.variety[index] = True
            kept = [*kept, *more]
        turns = {_exact_key(rows[i]) for i in kept}
        for index in group:
            if index in kept:
                continue
            exact = _exact_key(rows[index]) in turns
            found.exact_duplicates += exact
            of = f"of {rows[kept[0]].source_file} line {rows[kept[0]].source_line}"
            held = "holdout_" if rows[kept[0]].own_holdout else ""
            kind = "exact" if exact else "near"
            if not held and differs_in_values_alone(rows[index], (rows[i] for i in kept)):
                kind = "masked"
            found.reasons[index] = f"{held}{kind}_duplicate: {of}"


def _exact_key(row: Row) -> tuple[str, ...]:
    return tuple(normalise(message["content"]) for message in row.messages)


class _Chosen(Iterable[Row]):
    """Some of the rows in their order, read anew by each loop over them."""

    def __init__(self, rows: Sequence[Row], numbers: Sequence[int]) -> None:
        self._rows = rows
        self._flags = bytearray(len(rows))
        for number in numbers:
            self._flags[number] = 1

    def __iter__(self) -> Iterator[Row]:
        return iter(chosen_of(self._rows, self._flags))


def _split(rows: Sequence[Row], found: Deduplicated, config: DataConfig) -> None:
    labels, held = column_of(rows, "label"), column_of(rows, "own_holdout")
    free: list[int] = []
    own: list[int] = []
    for index, reason in enumerate(found.reasons):
        if reason is None:
            (own if held[index] else free).append(index)
    groups = tie_conversations(_Chosen(rows, free), [found.cluster[i] for i in free])
    found.conversation = [None] * len(rows)
    # The hash of a group is the smallest of the hashes of its rows.
    hashes: dict[int, str] = {}
    for index, root in zip(free, groups, strict=True):
        found.conversation[index] = root
        digest = cluster_hash(found.texts[index])
        hashes[root] = min(digest, hashes.get(root, digest))
    splits = assign(
        [labels[index] for index in free],
        [hashes[root] for root in groups],
        plan(len(free), config, own_holdout=bool(own)),
    )
    for index, split in zip(free, splits, strict=True):
        found.splits[index] = split
    for index in own:
        found.splits[index] = HOLDOUT


def _drop_leaks(rows: Sequence[Row], found: Deduplicated, threshold: float) -> None:
    """Reject the near-duplicates across the split that the first search missed."""
    for number, (index, (other, similarity)) in enumerate(_leaks(found, threshold).items(), 1):
        found.missed = number
        where = f"{rows[other].source_file} line {rows[other].source_line}"
        found.reasons[index] = f"cross_split_duplicate: {similarity:.2f} to {where}"
    found.cross_similarity = [0.0] * len(rows)
    if found.missed:
        for index, (_, similarity) in _leaks(found, threshold).items():
            found.cross_similarity[index] = similarity


def _leaks(found: Deduplicated, threshold: float) -> dict[int, tuple[int, float]]:
    """Return the kept rows that are near to a row of a split that is held out from them."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, split in enumerate(found.splits):
        if found.reasons[index] is None:
            members[split].append(index)
    leaks: dict[int, tuple[int, float]] = {}
    for held, free in (
        (members[VALIDATION], members[TRAIN]),
        (members[HOLDOUT], members[TRAIN] + members[VALIDATION]),
    ):
        near = nearest([found.texts[i] for i in free], [found.texts[i] for i in held], threshold)
        leaks |= {free[i]: (held[j], similarity) for i, (j, similarity) in near.items()}
    return leaks
