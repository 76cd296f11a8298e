"""Decide which rows are duplicates or contradictions, which of them stay, and the split of each."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.compared_text import (
    differs_in_values_alone,
    similarity_texts,
    varieties,
)
from tuneline.data.near_duplicates.minhash import near_pairs, nearest
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.near_duplicates.split import (
    assign,
    cluster_hash,
    half_of_drifted,
    plan,
    smallest_of_group,
    tie_conversations,
)
from tuneline.data.tables.rows import HOLDOUT, TRAIN, VALIDATION, Row, chosen_of, column_of


@dataclass
class Deduplicated:
    """The decisions on a dataset; each list has one entry for each row that came in.

    `splits` is empty, and `conversation` (the group of rows that share a split) None, for a row
    that left before the split. `cross_similarity` is to a row that is held out from it; `missed`
    counts what only the second search found.
    """

    texts: list[str]
    cluster: list[int]
    reasons: list[str | None]
    splits: list[str]
    conflict: list[bool]
    exact_duplicates: int = 0
    near_pairs: int = 0
    missed: int = 0
    cross_similarity: list[float] = field(default_factory=list)
    conversation: list[int | None] = field(default_factory=list)
    variety: list[bool] = field(default_factory=list)


def find_conflicts(rows: Sequence[Row]) -> list[list[int]]:
    """Return the groups of rows with one question and different answers, or different classes."""

    def digest(text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    # Hashes in place of texts, most of which are asked once.
    groups: dict[bytes, list[int]] = {}
    meanings: list[bytes] = []
    for index, row in enumerate(rows):
        question = "\x00".join(normalise(m["content"]) for m in row.prompt)
        groups.setdefault(digest(question), []).append(index)
        meanings.append(digest(meaning(row)))
    return [g for g in groups.values() if len(g) > 1 and len({meanings[i] for i in g}) > 1]


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
    """Return the cluster of each text (its smallest row number), and the number of near pairs."""
    numbers: dict[str, int] = {}
    distinct = [numbers.setdefault(text, len(numbers)) for text in texts]
    pairs = near_pairs(list(numbers), threshold)
    # The first row with a text has a smaller number than any row with a later text.
    first: dict[int, int] = {}
    for row, number in enumerate(distinct):
        first.setdefault(number, row)
    groups = smallest_of_group(len(numbers), [(i, j) for i, j, _ in pairs])
    return [first[groups[number]] for number in distinct], len(pairs)


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
    found.variety, found.conversation = [False] * len(rows), [None] * len(rows)
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
        kept = keep_of_cluster(rows, group, config.label_conflicts)
        held = "holdout_" if rows[kept[0]].own_holdout else ""
        if not held:
            more = varieties(rows, kept, group, config.template_repeats)
            for index in more:
                found.variety[index] = True
            kept = [*kept, *more]
        turns = {i: tuple(normalise(m["content"]) for m in rows[i].messages) for i in group}
        kept_turns = {turns[index] for index in kept}
        of = f"of {rows[kept[0]].source_file} line {rows[kept[0]].source_line}"
        for index in set(group) - set(kept):
            kind = "exact" if turns[index] in kept_turns else "near"
            found.exact_duplicates += kind == "exact"
            if not held and differs_in_values_alone(rows[index], (rows[i] for i in kept)):
                kind = "masked"
            found.reasons[index] = f"{held}{kind}_duplicate: {of}"


def _split(rows: Sequence[Row], found: Deduplicated, config: DataConfig) -> None:
    labels, held = column_of(rows, "label"), column_of(rows, "own_holdout")
    stay = [index for index, reason in enumerate(found.reasons) if reason is None]
    free, own = ([i for i in stay if bool(held[i]) is side] for side in (False, True))
    flags = bytearray(len(rows))
    for index in free:
        flags[index] = 1
    groups = tie_conversations(lambda: chosen_of(rows, flags), [found.cluster[i] for i in free])
    # The hash of a group is the smallest of the hashes of its rows.
    hashes: dict[int, str] = {}
    for index, root in zip(free, groups, strict=True):
        found.conversation[index] = root
        digest = cluster_hash(found.texts[index])
        hashes[root] = min(digest, hashes.get(root, digest))
    holdout, validation = plan(len(free), config, own_holdout=bool(own))
    drifted = [config.drifted(day) for day in column_of(rows, "day")]
    most = len(free) if own else holdout // 2
    tested = half_of_drifted(groups, [drifted[index] for index in free], hashes, most)
    rest = [n for n, root in enumerate(groups) if root not in tested]
    splits = assign(
        [labels[free[n]] for n in rest],
        [hashes[groups[n]] for n in rest],
        (max(0, holdout - (len(free) - len(rest))), validation),
    )
    found.splits = [HOLDOUT if reason is None else "" for reason in found.reasons]
    for n, split in zip(rest, splits, strict=True):
        found.splits[free[n]] = split


def _drop_leaks(rows: Sequence[Row], found: Deduplicated, threshold: float) -> None:
    """Reject the near-duplicates across the split that the first search missed."""
    leaks = _leaks(found, threshold)
    for number, (index, (other, similarity)) in enumerate(leaks.items(), 1):
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
        left, right = ([found.texts[i] for i in side] for side in (free, held))
        near = nearest(left, right, threshold)
        leaks |= {free[i]: (held[j], similarity) for i, (j, similarity) in near.items()}
    return leaks
