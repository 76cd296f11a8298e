"""Split rows into training, validation and hold-out: by group, stratified by class, stable.

In each class the groups are ordered by a hash of their text, and those with the lowest hashes are
held out. The hash of a row never changes, so rows that are added later hardly move any other row
across the split.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress, pairwise

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.compared_text import masked_prompt
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import HOLDOUT, TRAIN, VALIDATION, Row

# The empty prefix, from which every conversation starts.
_START = b""


def tie_conversations(rows: Callable[[], Iterable[Row]], cluster: Sequence[int]) -> list[int]:
    """Return the smallest index of each row's group, which shares a cluster or a conversation."""
    clusters: dict[int, list[int]] = defaultdict(list)
    named: dict[str, list[int]] = defaultdict(list)
    for index, (row, number) in enumerate(zip(rows(), cluster, strict=True)):
        clusters[number].append(index)
        if row.conversation is not None:
            named[row.conversation].append(index)
    groups = (*clusters.values(), *named.values(), *_continuations(rows))
    ties = [(group[0], other) for group in groups for other in group[1:]]
    return smallest_of_group(len(cluster), ties)


def torn(groups: Iterable[Hashable], splits: Iterable[str]) -> int:
    """Count the groups, None excepted, whose rows lie in more than one split."""
    found: dict[Hashable, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            found[group].add(split)
    return sum(len(sides) > 1 for sides in found.values())


def smallest_of_group(count: int, ties: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each number below `count` the smallest of those that ties connect with it."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(ties, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(ties)), (ends[0], ends[1])), (count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return list(first[group].tolist())


def _continuations(rows: Callable[[], Iterable[Row]]) -> list[list[int]]:
    """Return groups of rows, each a prompt with the prompts that continue it in one way only."""
    if all(sum(m["role"] == "user" for m in row.prompt) < 2 for row in rows()):
        return []
    paths = [_path(row) for row in rows()]
    ends: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        ends[path[-1] if path else _START].append(index)
    ways: dict[bytes, set[bytes]] = defaultdict(set)
    later: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        # A prompt is continued by an exchange: the answer and the next question.
        for end, following in pairwise(path):
            if end in ends:
                ways[end].add(following)
                later[end].append(index)
    return [[*ends[end], *later[end]] for end, found in ways.items() if len(found) == 1]


@lru_cache(maxsize=1 << 16)
def _digest(role: str, text: str) -> bytes:
    """Return the digest of a turn; rows of one conversation repeat its turns."""
    turn = f"{role}\x00{normalise(text)}"
    return hashlib.sha256(turn.encode("utf-8", "surrogatepass")).digest()


def _path(row: Row) -> list[bytes]:
    """Return a digest of the prompt up to each of its user turns, surrogates masked."""
    state = hashlib.sha256()
    path = []
    for role, text in masked_prompt(row):
        state.update(_digest(role, text))
        if role == "user":
            path.append(state.digest())
    return path


def plan(rows: int, config: DataConfig, *, own_holdout: bool) -> tuple[int, int]:
    """Return the numbers of hold-out and validation rows; an own hold-out needs none of these."""
    holdout = 0 if own_holdout else min(rows, max(1, round(config.holdout_share * rows)))
    return holdout, min(rows - holdout, max(1, round(config.validation_share * rows)))


def cluster_hash(text: str) -> str:
    """Return the hash that decides the split of a cluster."""
    return hashlib.sha256(text.encode()).hexdigest()


def assign(
    labels: Sequence[str | None], hashes: Sequence[str], counts: tuple[int, int]
) -> list[str]:
    """Assign a split to each row; rows with equal hashes are a group and stay together.

    A group that does not fit into what is left of hold-out and validation goes to training.
    """
    groups, strata = _strata(hashes), _strata(labels)
    room = dict(zip((HOLDOUT, VALIDATION), counts, strict=True))
    sizes = {label: len(rows) for label, rows in strata.items()}
    wanted = {HOLDOUT: quotas(sizes, counts[0])}
    left = {label: size - wanted[HOLDOUT][label] for label, size in sizes.items()}
    wanted[VALIDATION] = quotas(left, counts[1])
    placed: dict[str, str] = {}
    for label, rows in sorted(strata.items()):
        for key in sorted({hashes[row] for row in rows} - placed.keys()):
            size = len(groups[key])
            fits = (s for s in room if wanted[s][label] > 0 and size <= room[s])
            placed[key] = split = next(fits, TRAIN)
            if split != TRAIN:
                room[split] -= size
                for row in groups[key]:
                    wanted[split][labels[row] or ""] -= 1
    for split, count in zip(room, counts, strict=True):
        _fill(placed, {key: len(rows) for key, rows in groups.items()}, split, count)
    return [placed[key] for key in hashes]


def _fill(placed: dict[str, str], sizes: Mapping[str, int], split: str, count: int) -> None:
    """Place other groups if a split has less than two thirds of its rows, up to four thirds.

    From the largest group on that finds a way if there is one: either a single group is of such a
    size, or the smaller ones add up to it.
    """
    inside = [key for key, where in placed.items() if where == split]
    if 3 * sum(sizes[key] for key in inside) >= 2 * count:
        return
    placed.update(dict.fromkeys(inside, TRAIN))
    total = 0
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        if 3 * total >= 2 * count:
            return
        if placed[key] == TRAIN and 3 * (total + sizes[key]) <= 4 * count:
            placed[key], total = split, total + sizes[key]


def half_of_drifted(
    groups: Sequence[int], drifted: Sequence[bool], hashes: Mapping[int, str], most: int
) -> set[int]:
    """Choose half of the groups with drifted rows, those with the lowest hashes.

    They have at most `most` rows in all; `hashes` is by group.
    """
    sizes, inside = Counter(groups), set(compress(groups, drifted))
    chosen = sorted(inside, key=lambda group: hashes[group])[: len(inside) // 2]
    while sum(sizes[group] for group in chosen) > most:
        chosen.pop()
    return set(chosen)


def draw(labels: Sequence[str | None], hashes: Sequence[str], total: int) -> set[int]:
    """Draw `total` rows in proportion to their classes, those with the lowest hashes first."""
    strata = _strata(labels)
    take = quotas({label: len(rows) for label, rows in strata.items()}, total)
    return {
        row
        for label, rows in strata.items()
        for row in sorted(rows, key=lambda r: (hashes[r], r))[: take[label]]
    }


def _strata(labels: Sequence[str | None]) -> dict[str, list[int]]:
    """Return the rows of each class."""
    strata: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        strata[label or ""].append(row)
    return strata


def quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Apportion `total` to sizes by largest remainders, at most its size to each."""
    everything = sum(sizes.values())
    if everything == 0:
        return dict.fromkeys(sizes, 0)
    total = min(total, everything)
    exact = {name: total * size / everything for name, size in sizes.items()}
    given = {name: int(share) for name, share in exact.items()}
    order = sorted(sizes, key=lambda name: (given[name] - exact[name], name))
    for name in order[: total - sum(given.values())]:
        given[name] += 1
    return given
