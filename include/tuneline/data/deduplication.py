"""deduplication: no near-duplicates are left, none crosses the split, no answers contradict.

Rows are compared by their question (every turn but the last answer and the system prompt, without
the text that nearly all prompts share, surrogates of personal data masked): equal ones first, then
MinHash candidates verified by exact Jaccard similarity. One row of each cluster stays. The exact
join, which is independent of MinHash, then compares training and validation with the rows that are
held out from them. The hold-out is never changed: near-duplicates of it leave training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import AUDIT, REJECTED, ROWS
from tuneline.config import DataConfig
from tuneline.data.near_duplicates.phrases import (
    FORMAT_SHARE,
    Ngrams,
    RepeatedSentence,
    added_sentences,
    crowding,
    prose,
    repeated_ngrams,
    repeated_sentences,
    thin,
)
from tuneline.data.near_duplicates.search import Deduplicated, deduplicate
from tuneline.data.near_duplicates.split import cluster_hash
from tuneline.data.tables.rows import (
    HOLDOUT,
    SPLITS,
    TRAIN,
    VALIDATION,
    Row,
    rows_before,
    write_decisions,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

HOLDOUT_SHARE = (0.10, 0.20)
PHRASES = "phrases.json"
# Most n-grams listed there for people to read.
LISTED = 200
# With fewer held-out rows a share is uncertain by more than a tenth, and the summary says so.
FEW_HELD = 100


@dataclass(frozen=True)
class Thinned:
    """Repeated phrases of training answers before and after thinning.

    Attributes:
        rows: all rows, thinned.
        repeated: sentences that were repeated before.
        remaining: sentences that are still repeated.
        having: ids of the rows whose answer still holds one of these.
        ngrams: word n-grams that are still repeated.
        changed: number of answers that lost a sentence.
    """

    rows: list[Row]
    repeated: list[RepeatedSentence]
    remaining: list[RepeatedSentence]
    having: set[str]
    ngrams: Ngrams
    changed: int


def thin_answers(rows: Sequence[Row], config: DataConfig) -> Thinned:
    """Thin repeated sentences out of training answers; other rows stay as they are."""
    share, name = config.repeated_phrase_share, config.label_field
    at = [i for i, row in enumerate(rows) if row.split == TRAIN]
    answers = [rows[i].answer for i in at]
    labels = [rows[i].label for i in at]
    repeated = repeated_sentences([prose(answer, name) for answer in answers], labels, share)
    thinned = answers
    if config.repeated_phrases != "report":
        order = [cluster_hash(rows[i].row_id) for i in at]
        thinned = thin(answers, labels, order, repeated, share=share, label_field=name)
    result = list(rows)
    changed = 0
    for i, before, after in zip(at, answers, thinned, strict=True):
        if before != after:
            changed += 1
            result[i] = _with_answer(rows[i], after)
    texts = [prose(answer, name) for answer in thinned]
    # A sentence of nearly all answers is their format: it is reported and breaks no limit.
    remaining = [s for s in repeated_sentences(texts, labels, share) if s.share < FORMAT_SHARE]
    having = {
        rows[i].row_id
        for i, text in zip(at, texts, strict=True)
        if any(
            s.label in (None, rows[i].label) and s.sentence in added_sentences(text)
            for s in remaining
        )
    }
    return Thinned(result, repeated, remaining, having, repeated_ngrams(texts, share), changed)


def _with_answer(row: Row, answer: str) -> Row:
    last = len(row.messages) - 1
    return replace(
        row,
        messages=[*row.prompt, {"role": "assistant", "content": answer}],
        stand_ins=tuple(span for span in row.stand_ins if span.turn != last),
        n_tokens=0,
    )


def drop_crowding(rows: Sequence[Row], config: DataConfig) -> dict[str, str]:
    """Choose training rows to remove so that no phrase is in too many answers: id and reason."""
    train = [row for row in rows if row.split == TRAIN]
    gone = crowding(
        [prose(row.answer, config.label_field) for row in train],
        [cluster_hash(row.row_id) for row in train],
        config.repeated_phrase_share,
    )
    return {
        train[index].row_id: f"repeated_phrase: {phrase!r} is in too many answers"
        for index, phrase in gone.items()
    }


def _kept(rows: Sequence[Row], found: Deduplicated) -> list[Row]:
    return [
        replace(row, split=split)
        for row, split, reason in zip(rows, found.splits, found.reasons, strict=True)
        if reason is None
    ]


def _phrases_of(thinned: Thinned) -> dict[str, Any]:
    """Return the repeated phrases for people to read."""
    return {
        "sentences": [
            {"sentence": s.sentence, "label": s.label, "rows": s.rows, "share": round(s.share, 4)}
            for s in thinned.repeated
        ],
        "ngrams": [
            {"ngram": n.ngram, "rows": n.rows, "share": round(n.share, 4)}
            for n in thinned.ngrams.repeated[:LISTED]
        ],
    }


def _conclude(
    ctx: StepContext, rows: Sequence[Row], found: Deduplicated, thinned: Thinned, rejected: int
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
        *_holdout_share(splits, own=any(row.own_holdout for row in kept)),
        *_phrase_measurements(thinned),
        measure("classes_without_holdout", len(_unseen(kept)), "classes"),
        measure("holdout_margin", _margin(splits[HOLDOUT]), "share"),
    ]
    duplicates = sum(count for code, count in codes.items() if code.endswith("_duplicate"))
    summary = (
        f"{duplicates} near-duplicates and {codes['label_conflict']} contradicting rows removed; "
        f"{splits[TRAIN]} training, {splits[VALIDATION]} validation and {splits[HOLDOUT]} hold-out "
        f"rows, {leaks} near-duplicates across them."
        f"{_limitations(kept)}"
    )
    return ctx.conclude(
        summary, measurements, rows={ROWS: len(kept), REJECTED: rejected, AUDIT: len(rows)}
    )


def _holdout_share(splits: Counter[str], *, own: bool) -> list[Measurement]:
    """Return the share of the hold-out, with limits unless it is the dataset's own."""
    share = splits[HOLDOUT] / max(splits.total(), 1)
    if own:
        return [measure("holdout_share", share, "share")]
    low, high = HOLDOUT_SHARE
    return [
        measure("holdout_share", share, "share", ">=", low),
        measure("holdout_share_at_most", share, "share", "<=", high),
    ]


def _phrase_measurements(thinned: Thinned) -> list[Measurement]:
    worst = max((s.share for s in thinned.repeated), default=0.0)
    left = len(thinned.remaining)
    return [
        measure("repeated_sentences", len(thinned.repeated), "sentences"),
        measure("repeated_sentence_share", worst, "share"),
        measure("answers_thinned", thinned.changed, "rows"),
        measure("repeated_sentences_left", left, "sentences", "<=", 0, on_breach="warn"),
        measure("repeated_ngrams", len(thinned.ngrams.repeated), "phrases"),
        measure("repeated_ngram_share", thinned.ngrams.share, "share"),
    ]


def _unseen(kept: Sequence[Row]) -> list[str]:
    """Return the classes of training rows that no held-out row has."""
    held = {row.label for row in kept if row.split == HOLDOUT}
    train = {row.label for row in kept if row.split == TRAIN and row.label is not None}
    return sorted(train - held)


def _margin(rows: int) -> float:
    """Return half the 95 % interval of a share of one half that is measured on some rows."""
    return min(0.5, 0.98 / max(rows, 1) ** 0.5)


def _limitations(kept: Sequence[Row]) -> str:
    """State what the size of the dataset does not allow."""
    held = sum(row.split == HOLDOUT for row in kept)
    limitations = ""
    if held < FEW_HELD:
        limitations += (
            f" The dataset is small: a share measured on {held} hold-out rows is uncertain by "
            f"{_margin(held):.0%}."
        )
    unseen = _unseen(kept)
    if unseen:
        limitations += f" {len(unseen)} classes have too few rows for one in the hold-out."
    return limitations


def run(ctx: StepContext) -> Evidence:
    """Remove near-duplicates and contradictions, split, thin repeated phrases."""
    config = ctx.config.data
    rows = rows_before(ctx)
    found = deduplicate(rows, config)
    thinned = thin_answers(_kept(rows, found), config)
    if config.repeated_phrases == "drop":
        leaving = drop_crowding(thinned.rows, config)
        reasons = zip(rows, found.reasons, strict=True)
        found.reasons = [reason or leaving.get(row.row_id) for row, reason in reasons]
        first, thinned = thinned, thin_answers(_kept(rows, found), config)
        thinned = replace(thinned, repeated=first.repeated)
    ctx.write_json(PHRASES, _phrases_of(thinned))
    write_rows(ctx.out / ROWS, thinned.rows)
    splits = [
        split if why is None else None
        for split, why in zip(found.splits, found.reasons, strict=True)
    ]
    left = write_decisions(
        ctx,
        rows,
        found.reasons,
        cluster=found.cluster,
        own_holdout=[row.own_holdout for row in rows],
        conflict=found.conflict,
        split=splits,
        in_holdout=[None if split is None else int(split == HOLDOUT) for split in splits],
        cross_similarity=found.cross_similarity,
        repeated_sentence=[int(row.row_id in thinned.having) for row in rows],
    )
    return _conclude(ctx, rows, found, thinned, left)
