"""Find rows of one conversation, which must lie on one side of the split.

Rows belong together if the dataset says so (a conversation id), or if the prompt of one continues
that of another: a conversation that was written out turn by turn. An opening that several
conversations share ("hi") ties none of them together.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tuneline.data.near_duplicates.masked import masked_prompt
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import Row

# The empty prefix, from which every conversation starts.
_START = b""


def tie_conversations(rows: Iterable[Row], cluster: Sequence[int]) -> list[int]:
    """Return the group of each row: rows of equal groups share a cluster or a conversation.

    Args:
        rows: the rows that are split; they are read twice.
        cluster: number of the cluster of near-duplicates of each row.

    Returns:
        For each row the smallest index of a row of its group.
    """
    parent = list(range(len(cluster)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def tie(indices: Sequence[int]) -> None:
        roots = sorted({root(index) for index in indices})
        for other in roots[1:]:
            parent[other] = roots[0]

    clusters: dict[int, list[int]] = defaultdict(list)
    named: dict[str, list[int]] = defaultdict(list)
    for index, (row, number) in enumerate(zip(rows, cluster, strict=True)):
        clusters[number].append(index)
        if row.conversation is not None:
            named[row.conversation].append(index)
    for together in (*clusters.values(), *named.values(), *_continuations(rows)):
        tie(together)
    return [root(index) for index in range(len(cluster))]


def _continuations(rows: Iterable[Row]) -> list[list[int]]:
    """Return groups of rows, each a prompt with the prompts that continue it in one way only."""
    if all(sum(m["role"] == "user" for m in row.prompt) < 2 for row in rows):
        return []
    paths = [_path(row) for row in rows]
    ends: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        ends[path[-1] if path else _START].append(index)
    ways: dict[bytes, set[bytes]] = defaultdict(set)
    later: dict[bytes, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        # A prompt is continued by an exchange: the answer and the next question.
        for at in range(len(path) - 1):
            if path[at] in ends:
                ways[path[at]].add(path[at + 1])
                later[path[at]].append(index)
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
