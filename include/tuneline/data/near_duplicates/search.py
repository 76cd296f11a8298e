"""Which rows ask the same, which of them stay, and which split each belongs to.

Pure functions over rows: conflicts, clusters of near-duplicates, the row that stays of each, the
split by cluster, and a second, exact look across the split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.boilerplate import common_affixes
from tuneline.data.near_duplicates.exact_join import cross_similarities
from tuneline.data.near_duplicates.minhash import Clusters, near_pairs
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.near_duplicates.split import assign, cluster_hash, plan
from tuneline.data.tables.rows import HOLDOUT, TRAIN, VALIDATION, Row


@dataclass
class Deduplicated:
    """What deduplication decided; lists run along the rows that came in.

    Attributes:
        texts: normalised texts that rows were compared by.
        cluster: number of each row's cluster of near-duplicates.
        reasons: why a row leaves, None when it stays.
        splits: where it belongs, empty for a row that left before the split.
        conflict: whether another row asks the same and answers otherwise.
        cross_similarity: greatest similarity of a kept training or validation row to a row
            that is held further back, as the second search finds it.
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


def similarity_texts(rows: Sequence[Row], among: Sequence[Row] | None = None) -> list[str]:
    """The normalised text that each row is compared by.

    Args:
        rows: the rows.
        among: the whole dataset, which tells what all prompts share; None for `rows` itself.
    """
    own = [_masked(row) for row in rows]
    affixes = common_affixes(own if among is None else [_masked(row) for row in among])
    return [normalise(affixes.own(text)) or normalise(text) for text in own]


def _masked(row: Row) -> str:
    """The asking turns, stand-ins of personal data replaced by their type."""
    texts = []
    for number, message in enumerate(row.prompt):
        if message["role"] == "system":
            continue
        text = message["content"]
        for stand_in in sorted(row.stand_ins, key=lambda s: -s.start):
            if stand_in.turn == number:
                text = f"{text[: stand_in.start]}{stand_in.entity}{text[stand_in.end :]}"
        texts.append(text)
    return "\n".join(texts)


def find_conflicts(rows: Sequence[Row]) -> list[list[int]]:
    """Groups of rows that ask the same and answer differently (by class where there is one)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups["\x00".join(normalise(m["content"]) for m in row.prompt)].append(index)
    return [g for g in groups.values() if len({meaning(rows[i]) for i in g}) > 1]


def meaning(row: Row) -> str:
    """What a row teaches: its class, or its answer where it has none."""
    return row.label if row.label is not None else normalise(row.answer)


def conflict_rejects(rows: Sequence[Row], group: Sequence[int], policy: str) -> list[int]:
    """Rows of a group of contradicting ones that the policy takes out."""
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
    """Clusters of near-duplicates.

    Returns:
        For each text its cluster (the smallest row number in it), and the number of pairs of
        different texts found.
    """
    first: dict[str, int] = {}
    clusters = Clusters(len(texts))
    for index, text in enumerate(texts):
        clusters.join(first.setdefault(text, index), index)
    distinct = list(first)
    pairs = near_pairs(distinct, threshold)
    for i, j, _ in pairs:
        clusters.join(first[distinct[i]], first[distinct[j]])
    return [clusters.root(index) for index in range(len(texts))], len(pairs)


def keep_of_cluster(rows: Sequence[Row], members: Sequence[int], policy: str) -> list[int]:
    """The rows of a cluster that stay.

    Rows of the dataset's own hold-out all stay, and then no other. Otherwise one does: of the
    commonest class, the one with the longest text, then the smallest row id. With the policy
    `keep` one of each class stays.
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
    """Find conflicts and near-duplicates, choose what stays, split it, look for leaks again."""
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
    _keep_one(rows, found, config.label_conflicts)
    _split(rows, found, config)
    _drop_leaks(rows, found, config.near_duplicate_jaccard)
    return found


def _keep_one(rows: Sequence[Row], found: Deduplicated, policy: str) -> None:
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(found.cluster):
        if found.reasons[index] is None:
            members[root].append(index)
    for group in members.values():
        if len(group) < 2:
            continue
        if len({meaning(rows[i]) for i in group}) > 1 and len({found.texts[i] for i in group}) > 1:
            found.near_conflicts += 1
        kept = keep_of_cluster(rows, group, policy)
        turns = {_exact_key(rows[i]) for i in kept}
        for index in group:
            if index in kept:
                continue
            exact = _exact_key(rows[index]) in turns
            found.exact_duplicates += exact
            of = f"of {rows[kept[0]].source_file} line {rows[kept[0]].source_line}"
            held = "holdout_" if rows[kept[0]].own_holdout else ""
            found.reasons[index] = f"{held}{'exact' if exact else 'near'}_duplicate: {of}"


def _exact_key(row: Row) -> tuple[str, ...]:
    return tuple(normalise(message["content"]) for message in row.messages)


def _split(rows: Sequence[Row], found: Deduplicated, config: DataConfig) -> None:
    free: list[int] = []
    own: list[int] = []
    for index, row in enumerate(rows):
        if found.reasons[index] is None:
            (own if row.own_holdout else free).append(index)
    # The hash of a cluster is the smallest of its rows'.
    hashes: dict[int, str] = {}
    for index in free:
        digest = cluster_hash(found.texts[index])
        root = found.cluster[index]
        hashes[root] = min(digest, hashes.get(root, digest))
    splits = assign(
        [rows[index].label for index in free],
        [hashes[found.cluster[index]] for index in free],
        plan(len(free), config, own_holdout=bool(own)),
    )
    for index, split in zip(free, splits, strict=True):
        found.splits[index] = split
    for index in own:
        found.splits[index] = HOLDOUT


def _drop_leaks(rows: Sequence[Row], found: Deduplicated, threshold: float) -> None:
    """Take out of training and validation what the first search missed."""
    for number, (index, (other, similarity)) in enumerate(_leaks(found, threshold).items(), 1):
        found.missed = number
        where = f"{rows[other].source_file} line {rows[other].source_line}"
        found.reasons[index] = f"cross_split_duplicate: {similarity:.2f} to {where}"
    found.cross_similarity = [0.0] * len(rows)
    if found.missed:
        for index, (_, similarity) in _leaks(found, threshold).items():
            found.cross_similarity[index] = similarity


def _leaks(found: Deduplicated, threshold: float) -> dict[int, tuple[int, float]]:
    """Kept rows that are near to a row which is held further back."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, split in enumerate(found.splits):
        if found.reasons[index] is None:
            members[split].append(index)
    leaks: dict[int, tuple[int, float]] = {}
    for held, free in (
        (members[VALIDATION], members[TRAIN]),
        (members[HOLDOUT], members[TRAIN] + members[VALIDATION]),
    ):
        near = cross_similarities(
            [found.texts[i] for i in free], [found.texts[i] for i in held], threshold
        )
        leaks |= {free[i]: (held[j], similarity) for i, (j, similarity) in near.items()}
    return leaks
