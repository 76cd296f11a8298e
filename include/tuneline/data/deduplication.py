"""Near-duplicates are gone, none crosses the split, and answers do not contradict each other.

Rows are compared by what is asked (every turn but the last answer and the system prompt, without
the text that nearly all prompts share, stand-ins of personal data masked): equal ones first,
then MinHash candidates verified by exact Jaccard similarity. Clusters, not pairs: of each one
row stays. What is held out is checked once more by an exact search that shares no code with the
first. The hold-out is never touched: what resembles it leaves training.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.config import DataConfig
from tuneline.data.boilerplate import common_affixes
from tuneline.data.leakage import cross_similarities
from tuneline.data.minhash import Clusters, near_pairs, normalise
from tuneline.data.phrases import (
    FORMAT_SHARE,
    RepeatedSentence,
    added_sentences,
    prose,
    repeated_ngram_share,
    repeated_sentences,
    thin,
)
from tuneline.data.split import assign, cluster_hash, plan
from tuneline.data.tables import (
    AUDIT,
    HOLDOUT,
    REJECTED,
    ROWS,
    SPLITS,
    TRAIN,
    UNSCRUBBED,
    VALIDATION,
    Row,
    read_raws,
    rejects_of,
    rows_of,
    write_audit,
    write_rejects,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "deduplication"
HOLDOUT_SHARE = (0.10, 0.20)


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


@dataclass(frozen=True)
class Thinned:
    """Repeated phrases before and after thinning, over training answers.

    `having` names the rows whose answer still holds one of the `remaining` sentences.
    """

    rows: list[Row]
    repeated: list[RepeatedSentence]
    remaining: list[RepeatedSentence]
    having: set[str]
    ngram_share: float
    changed: int


def thin_answers(rows: Sequence[Row], config: DataConfig) -> Thinned:
    """Thin repeated sentences out of training answers; other rows stay as they are."""
    share, name = config.repeated_phrase_share, config.label_field
    at = [i for i, row in enumerate(rows) if row.split == TRAIN]
    answers = [rows[i].answer for i in at]
    labels = [rows[i].label for i in at]
    texts = [prose(answer, name) for answer in answers]
    repeated = repeated_sentences(texts, labels, share)
    thinned = answers
    if config.repeated_phrases == "thin":
        order = [cluster_hash(rows[i].row_id) for i in at]
        thinned = thin(answers, labels, order, repeated, share=share, label_field=name)
    result = list(rows)
    changed = 0
    for i, before, after in zip(at, answers, thinned, strict=True):
        if before != after:
            changed += 1
            result[i] = _with_answer(rows[i], after)
    after_texts = [prose(answer, name) for answer in thinned]
    # What nearly all answers have is their format: reported, not held against them.
    remaining = [
        phrase
        for phrase in repeated_sentences(after_texts, labels, share)
        if phrase.share < FORMAT_SHARE
    ]
    having = {
        rows[i].row_id
        for i, text in zip(at, after_texts, strict=True)
        if any(
            phrase.label in (None, rows[i].label) and phrase.sentence in added_sentences(text)
            for phrase in remaining
        )
    }
    ngram_share = repeated_ngram_share(after_texts, share)
    return Thinned(result, repeated, remaining, having, ngram_share, changed)


def _with_answer(row: Row, answer: str) -> Row:
    last = len(row.messages) - 1
    return replace(
        row,
        messages=[*row.prompt, {"role": "assistant", "content": answer}],
        stand_ins=tuple(s for s in row.stand_ins if s.turn != last),
    )


def run(ctx: StepContext) -> Evidence:
    """Remove near-duplicates and contradictions, split, thin repeated phrases."""
    config = ctx.config.data
    rows = rows_of(ctx, "pii_scrubbing")
    found = deduplicate(rows, config)
    left = [(row, reason) for row, reason in zip(rows, found.reasons, strict=True) if reason]
    kept = [
        replace(row, split=split)
        for row, split, reason in zip(rows, found.splits, found.reasons, strict=True)
        if reason is None
    ]
    thinned = thin_answers(kept, config)
    write_rows(ctx.out / ROWS, thinned.rows)
    raws = read_raws(ctx.input("schema_validation", UNSCRUBBED), [row.row_id for row, _ in left])
    rejects = list(rejects_of(left, ITEM, raws))
    write_rejects(ctx.quarantine / Path(REJECTED).name, rejects)
    _write_audit(ctx.out / AUDIT, rows, found, thinned.having)
    return _conclude(ctx, rows, found, thinned, len(rejects))


def _write_audit(path: Path, rows: Sequence[Row], found: Deduplicated, having: set[str]) -> None:
    kept = [reason is None for reason in found.reasons]
    write_audit(
        path,
        {
            "row_id": [row.row_id for row in rows],
            "kept": kept,
            "reason": [(reason or "").split(":", 1)[0] or None for reason in found.reasons],
            "cluster": found.cluster,
            "own_holdout": [row.own_holdout for row in rows],
            "conflict": found.conflict,
            "split": [split if k else None for split, k in zip(found.splits, kept, strict=True)],
            "in_holdout": [
                int(split == HOLDOUT) if k else None
                for split, k in zip(found.splits, kept, strict=True)
            ],
            "cross_similarity": found.cross_similarity,
            "repeated_sentence": [int(row.row_id in having) for row in rows],
        },
    )


def _conclude(
    ctx: StepContext,
    rows: Sequence[Row],
    found: Deduplicated,
    thinned: Thinned,
    rejected: int,
) -> Evidence:
    kept = thinned.rows
    splits = Counter(row.split for row in kept)
    codes = Counter((reason or "").split(":", 1)[0] for reason in found.reasons if reason)
    leaks = sum(
        similarity > 0 and reason is None
        for similarity, reason in zip(found.cross_similarity, found.reasons, strict=True)
    )
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", len(kept), "rows", ">=", 1),
        measure("rows_lost", len(rows) - len(kept) - rejected, "rows", "==", 0),
        measure("exact_duplicates", found.exact_duplicates, "rows"),
        measure("near_duplicate_pairs", found.near_pairs, "pairs"),
        measure("near_pairs_with_other_answers", found.near_conflicts, "clusters"),
        measure("label_conflicts", sum(found.conflict), "rows"),
        *(measure(f"rejected_{code}", count, "rows") for code, count in sorted(codes.items())),
        measure("missed_by_minhash", found.missed, "rows"),
        measure("cross_split_near_duplicates", leaks, "rows", "<=", 0),
        *(measure(f"{split}_rows", splits[split], "rows", ">=", 1) for split in SPLITS),
        *_share(splits, own=any(row.own_holdout for row in kept)),
        *_phrases(thinned),
    ]
    duplicates = sum(count for code, count in codes.items() if code.endswith("_duplicate"))
    summary = (
        f"{duplicates} near-duplicates and {codes['label_conflict']} contradicting rows removed; "
        f"{splits[TRAIN]} training, {splits[VALIDATION]} validation and {splits[HOLDOUT]} hold-out "
        f"rows, {leaks} near-duplicates across them."
    )
    return ctx.conclude(
        summary, measurements, rows={ROWS: len(kept), REJECTED: rejected, AUDIT: len(rows)}
    )


def _share(splits: Counter[str], *, own: bool) -> list[Measurement]:
    share = splits[HOLDOUT] / max(splits.total(), 1)
    if own:
        return [measure("holdout_share", share, "share")]
    low, high = HOLDOUT_SHARE
    return [
        measure("holdout_share", share, "share", ">=", low),
        measure("holdout_share_at_most", share, "share", "<=", high),
    ]


def _phrases(thinned: Thinned) -> list[Measurement]:
    worst = max((s.share for s in thinned.repeated), default=0.0)
    return [
        measure("repeated_sentences", len(thinned.repeated), "sentences"),
        measure("repeated_sentence_share", worst, "share"),
        measure("answers_thinned", thinned.changed, "rows"),
        measure(
            "repeated_sentences_left",
            len(thinned.remaining),
            "sentences",
            "<=",
            0,
            on_breach="warn",
        ),
        measure("repeated_ngram_share", thinned.ngram_share, "share"),
    ]
