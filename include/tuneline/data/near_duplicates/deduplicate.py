"""Decide which rows are duplicates or contradictions, which of them stay, and the split of each.

Of rows that ask nearly the same under one system turn and answer the same, one stays. Near rows
with another answer, system turn or question to one document stay, on one side of the split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.alike import Alike, Pair, find_alike, partners
from tuneline.data.near_duplicates.compared_text import compared_texts, question, similarity_texts
from tuneline.data.near_duplicates.minhash import near_pairs, nearest
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
    that left before the split. `near` marks the rows that stay though they ask nearly what another
    asks. `cross_similarity` is to a row that is held out from it; `missed` counts what only the
    second search found.
    """

    views: list[Alike]
    reasons: list[str | None]
    splits: list[str]
    conflict: list[bool]
    near: list[bool]
    conversation: list[int | None]
    exact_duplicates: int = 0
    missed: int = 0
    cross_similarity: list[float] = field(default_factory=list)

    def staying(self) -> list[int]:
        """Return the numbers of the rows that are still in."""
        return [row for row, reason in enumerate(self.reasons) if reason is None]


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


def deduplicate(
    rows: Sequence[Row], config: DataConfig, before: Alike | None = None
) -> Deduplicated:
    """Find conflicts and duplicates, choose the rows that stay, split them, drop leaks.

    `before` is what was alike before the rows were scrubbed.
    """
    views = [find_alike(rows, config.near_duplicate_jaccard), *([before] if before else [])]
    count = len(rows)
    found = Deduplicated(
        views, [None] * count, [""] * count, [False] * count, [False] * count, [None] * count
    )
    _drop_contradictions(rows, found, config.label_conflicts)
    _drop_duplicates(rows, found)
    _split(rows, found, config)
    _drop_leaks(rows, found, config.near_duplicate_jaccard)
    return found


def _drop_contradictions(rows: Sequence[Row], found: Deduplicated, policy: str) -> None:
    """Take out what the policy says of the rows that ask the same and answer differently."""
    held = column_of(rows, "own_holdout")
    for group, answers in (each for view in found.views for each in view.contradictions()):
        most = Counter(answers).most_common(2)
        clear = most[0][0] if policy == "keep_majority" and most[0][1] > most[1][1] else None
        for row, answer in zip(group, answers, strict=True):
            found.conflict[row] = True
            if policy != "keep" and answer != clear and not held[row]:
                why = f"{len(group)} rows ask the same, answers differ"
                found.reasons[row] = f"label_conflict: {why}"


class _Taken:
    """The rows that stay, by what another row may not repeat."""

    def __init__(self, view: Alike, *, own: bool) -> None:
        self._kind, self._question = view.kind.tolist(), view.question.tolist()
        self._same = partners(view.same)
        # What is near to the dataset's own hold-out leaves training, whatever it answers.
        self._near = partners(view.near) if own else {}
        self._kinds: dict[int, int] = {}
        self._held: dict[int, int] = {}

    def add(self, row: int, *, held: bool) -> None:
        kind, asked = self._kind[row], self._question[row]
        for number in (kind, *self._same.get(kind, ())):
            self._kinds.setdefault(number, row)
        if held:
            for number in (asked, *self._near.get(asked, ())):
                self._held.setdefault(number, row)

    def of(self, row: int) -> int | None:
        """Return the row that stays and that this one repeats."""
        held = self._held.get(self._question[row])
        return self._kinds.get(self._kind[row]) if held is None else held


def _drop_duplicates(rows: Sequence[Row], found: Deduplicated) -> None:
    """Keep one of the rows that repeat each other: the longest, then that with the smallest id."""
    held, ids = column_of(rows, "own_holdout"), column_of(rows, "row_id")
    lengths = [sum(len(turn["content"]) for turn in row.messages) for row in rows]
    taken = [_Taken(view, own=any(held)) for view in found.views]
    for row in sorted(found.staying(), key=lambda row: (not held[row], -lengths[row], ids[row])):
        of = next((of for each in taken if (of := each.of(row)) is not None), None)
        if of is None or held[row]:
            for each in taken:
                each.add(row, held=held[row])
            continue
        exact = _turns(rows[row]) == _turns(rows[of])
        found.exact_duplicates += exact
        kind = f"{'holdout_' if held[of] else ''}{'exact' if exact else 'near'}_duplicate"
        place = f"{rows[of].source_file} line {rows[of].source_line}"
        found.reasons[row] = f"{kind}: of {place}"


def _turns(row: Row) -> list[str]:
    return [" ".join(turn["content"].split()).casefold() for turn in row.messages]


def _group(rows: Sequence[Row], found: Deduplicated, free: Sequence[int]) -> list[int]:
    """Return the group of each of the rows: near ones, those of a document, of a conversation."""
    place = {row: position for position, row in enumerate(free)}
    ties: list[Pair] = []
    for view in found.views:
        pairs, near = view.ties(free)
        ties += [(place[one], place[other]) for one, other in pairs]
        for row in near:
            found.near[row] = True
    flags = bytearray(len(rows))
    for row in free:
        flags[row] = 1
    return tie_conversations(lambda: chosen_of(rows, flags), smallest_of_group(len(free), ties))


def _split(rows: Sequence[Row], found: Deduplicated, config: DataConfig) -> None:
    labels, held, ids = (column_of(rows, name) for name in ("label", "own_holdout", "row_id"))
    stay = found.staying()
    free = [row for row in stay if not held[row]]
    groups = _group(rows, found, free)
    # The key of a group is the smallest hash of its rows, by texts that a surrogate can't change.
    keys: dict[int, str] = {}
    hashes = [
        f"{cluster_hash(text)} {row_id}"
        for text, row_id in zip(similarity_texts(rows), ids, strict=True)
    ]
    for row, root in zip(free, groups, strict=True):
        found.conversation[row] = root
        keys[root] = min(hashes[row], keys.get(root, hashes[row]))
    own = len(free) < len(stay)
    holdout, validation = plan(len(free), config, own_holdout=own)
    drifted = [config.drifted(day) for day in column_of(rows, "day")]
    most = len(free) if own else holdout // 2
    tested = half_of_drifted(groups, [drifted[row] for row in free], keys, most)
    rest = [n for n, root in enumerate(groups) if root not in tested]
    splits = assign(
        [labels[free[n]] for n in rest],
        [keys[groups[n]] for n in rest],
        (max(0, holdout - (len(free) - len(rest))), validation),
    )
    for row in stay:
        found.splits[row] = HOLDOUT
    for n, split in zip(rest, splits, strict=True):
        found.splits[free[n]] = split


def _drop_leaks(rows: Sequence[Row], found: Deduplicated, threshold: float) -> None:
    """Reject the near-duplicates across the split that the first search missed."""
    own = list(map(question, rows))
    texts = compared_texts(own, own)
    leaks = _leaks(found, texts, threshold)
    for number, (index, (other, similarity)) in enumerate(leaks.items(), 1):
        found.missed = number
        where = f"{rows[other].source_file} line {rows[other].source_line}"
        found.reasons[index] = f"cross_split_duplicate: {similarity:.2f} to {where}"
    found.cross_similarity = [0.0] * len(rows)
    if found.missed:
        for index, (_, similarity) in _leaks(found, texts, threshold).items():
            found.cross_similarity[index] = similarity


def _leaks(
    found: Deduplicated, texts: Sequence[str], threshold: float
) -> dict[int, tuple[int, float]]:
    """Return the kept rows that are near to a row of a split that is held out from them."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in found.staying():
        members[found.splits[index]].append(index)
    leaks: dict[int, tuple[int, float]] = {}
    for held, free in (
        (members[VALIDATION], members[TRAIN]),
        (members[HOLDOUT], members[TRAIN] + members[VALIDATION]),
    ):
        left, right = ([texts[i] for i in side] for side in (free, held))
        near = nearest(left, right, threshold)
        leaks |= {free[i]: (held[j], similarity) for i, (j, similarity) in near.items()}
    return leaks
