"""deduplication: no near-duplicates are left, none crosses the split, no answers contradict.

Rows are compared by their question, without the text that nearly all prompts share, as they were
before scrubbing and as they stand. Near rows that differ in answer or system turn stay, as a group.
The dataset's own hold-out is never changed: what is near to it leaves training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from tuneline.artifacts.data import AUDIT, REJECTED, ROWS
from tuneline.config import DataConfig
from tuneline.data.near_duplicates import phrases
from tuneline.data.near_duplicates.alike import read_alike
from tuneline.data.near_duplicates.deduplicate import Deduplicated, deduplicate
from tuneline.data.near_duplicates.split import cluster_hash, torn
from tuneline.data.tables.removed_rows import conclude
from tuneline.data.tables.rows import (
    HOLDOUT,
    SPLITS,
    TRAIN,
    VALIDATION,
    Row,
    column_of,
    rows_before,
    write_decisions,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

HOLDOUT_SHARE = (0.10, 0.20)
# Rows whose answers or system turns differ although they ask nearly the same: more than this share
# of them is what somebody should know of, such as several questions to a document.
MAX_NEAR = 0.02
PHRASES = "phrases.json"
# With fewer held-out rows a share is uncertain by a tenth, and of models whose free texts are good
# more than 2 % are undecided; the summary says so.
FEW_HELD = 130


@dataclass(frozen=True)
class KeptRows:
    """The rows that stay, with their split and thinned answer; made anew by each loop over them."""

    rows: Sequence[Row]
    reasons: Sequence[str | None]
    splits: Sequence[str]
    answers: Mapping[int, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows with their numbers among all that came in."""
        columns = zip(self.rows, self.splits, self.reasons, strict=True)
        for number, (row, split, reason) in enumerate(columns):
            if reason is not None:
                continue
            kept = replace(row, split=split)
            if number in self.answers:
                turns = [*row.prompt, {"role": "assistant", "content": self.answers[number]}]
                spans = tuple(span for span in row.stand_ins if span.turn < len(row.prompt))
                kept = replace(kept, messages=turns, stand_ins=spans, n_tokens=0)
            yield number, kept

    def facts(self) -> list[Row]:
        """Return the rows without their turns."""
        labels = column_of(self.rows, "label")
        own = column_of(self.rows, "own_holdout")
        columns = zip(labels, own, self.splits, self.reasons, strict=True)
        return [
            Row("", [], "", 0, label=label, own_holdout=held, split=split)
            for label, held, split, reason in columns
            if reason is None
        ]


@dataclass(frozen=True)
class Thinned:
    """Repeated phrases of training answers; `having` are rows that still hold a sentence."""

    rows: KeptRows
    repeated: list[phrases.RepeatedSentence]
    remaining: list[phrases.RepeatedSentence]
    having: set[int]


def thin_answers(rows: KeptRows, config: DataConfig) -> Thinned:
    """Thin repeated sentences out of training answers; other rows stay as they are."""
    share, name = config.repeated_phrase_share, config.label_field
    train = [
        (number, row.answer, row.label, cluster_hash(row.row_id))
        for number, row in rows.numbered()
        if row.split == TRAIN
    ]
    answers, labels = [answer for _, answer, _, _ in train], [label for _, _, label, _ in train]
    order = [key for *_, key in train]
    repeated = phrases.repeated_sentences(
        [phrases.prose(answer, name) for answer in answers], labels, share
    )
    thinned = answers
    if config.repeated_phrases == "thin":
        thinned = phrases.thin(answers, labels, order, repeated, share=share, label_field=name)
    changed = {
        number: after
        for (number, before, *_), after in zip(train, thinned, strict=True)
        if before != after
    }
    texts = [phrases.prose(answer, name) for answer in thinned]
    # A sentence of nearly all answers is their format: it is reported and breaks no limit.
    left = phrases.repeated_sentences(texts, labels, share) if changed else repeated
    remaining = [s for s in left if s.share < phrases.FORMAT_SHARE]
    having: set[int] = set()
    for (number, _, label, _), text in zip(train, texts, strict=True):
        added = phrases.added_sentences(text) if remaining else set()
        if any(s.label in (None, label) and s.sentence in added for s in remaining):
            having.add(number)
    return Thinned(replace(rows, answers=changed), repeated, remaining, having)


def _conclude(
    ctx: StepContext,
    rows: Sequence[Row],
    found: Deduplicated,
    thinned: Thinned,
    sizes: Mapping[str, int],
) -> Evidence:
    kept = thinned.rows.facts()
    splits = Counter(row.split for row in kept)
    codes = Counter((reason or "").split(":", 1)[0] for reason in found.reasons if reason)
    leaks = sum(
        similarity > 0 and reason is None
        for similarity, reason in zip(found.cross_similarity, found.reasons, strict=True)
    )
    stay = found.staying()
    groups = [found.conversation[row] for row in stay]
    largest = Counter(group for group in groups if group is not None).most_common(1)
    together = largest[0][1] if largest else 0
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", sizes[ROWS], "rows", ">=", 1),
        measure("rows_lost", len(rows) - sizes[ROWS] - sizes[REJECTED], "rows", "==", 0),
        measure("exact_duplicates", found.exact_duplicates, "rows"),
        measure("near_question_pairs", max(len(view.near) for view in found.views), "pairs"),
        measure(
            "near_rows_that_differ",
            sum(found.near[row] for row in stay) / max(len(stay), 1),
            "share",
            "<=",
            MAX_NEAR,
            on_breach="warn",
        ),
        measure("largest_group", together, "rows"),
        measure("label_conflicts", sum(found.conflict), "rows"),
        *(measure(f"rejected_{code}", count, "rows") for code, count in sorted(codes.items())),
        measure("missed_by_first_search", found.missed, "rows"),
        measure("cross_split_near_duplicates", leaks, "rows", "<=", 0),
        measure(
            "torn_conversations",
            torn(groups, [found.splits[row] for row in stay]),
            "conversations",
            "==",
            0,
        ),
        *(measure(f"{split}_rows", splits[split], "rows", ">=", 1) for split in SPLITS),
        *holdout_share(splits, own=any(row.own_holdout for row in kept)),
        *_phrase_measurements(thinned),
        measure("classes_without_holdout", len(_unseen(kept)), "classes"),
    ]
    duplicates = sum(count for code, count in codes.items() if code.endswith("_duplicate"))
    summary = (
        f"{duplicates} near-duplicates and {codes['label_conflict']} contradicting rows removed; "
        f"{splits[TRAIN]} training, {splits[VALIDATION]} validation and {splits[HOLDOUT]} hold-out "
        f"rows, {leaks} near-duplicates across them."
        f"{_limitations(kept)}{_tied(splits, together, own=any(row.own_holdout for row in kept))}"
    )
    return conclude(ctx, summary, measurements, rows=sizes)


def holdout_share(splits: Counter[str], *, own: bool) -> list[Measurement]:
    """Return the share of the hold-out, with limits unless it is the dataset's own."""
    share = splits[HOLDOUT] / max(splits.total(), 1)
    if own:
        return [measure("holdout_share", share, "share")]
    low, high = HOLDOUT_SHARE
    return [
        measure("holdout_share", share, "share", ">=", low),
        measure("holdout_share_at_most", share, "share", "<=", high),
    ]


def _tied(splits: Counter[str], together: int, *, own: bool) -> str:
    """Say that the hold-out is too small as too many rows belong together."""
    low, high = HOLDOUT_SHARE
    if own or splits[HOLDOUT] >= low * splits.total() or together <= high * splits.total():
        return ""
    return (
        f" {together} of {splits.total()} rows can't be divided without a leak, each asking nearly "
        "what another of them asks: name a hold-out of its own (data.holdout), or give rows that "
        "differ in more."
    )


def _phrase_measurements(thinned: Thinned) -> list[Measurement]:
    left = len(thinned.remaining)
    return [
        measure("repeated_sentences", len(thinned.repeated), "sentences"),
        measure("answers_thinned", len(thinned.rows.answers), "rows"),
        measure("repeated_sentences_left", left, "sentences", "<=", 0, on_breach="warn"),
    ]


def _unseen(kept: Sequence[Row]) -> list[str]:
    """Return the classes of training rows that no held-out row has."""
    held = {row.label for row in kept if row.split == HOLDOUT}
    train = {row.label for row in kept if row.split == TRAIN and row.label is not None}
    return sorted(train - held)


def _limitations(kept: Sequence[Row]) -> str:
    """State what the size of the dataset does not allow."""
    held, unseen = sum(row.split == HOLDOUT for row in kept), len(_unseen(kept))
    limitations = ""
    if held < FEW_HELD:
        # Half the 95 % interval of a share of one half.
        limitations = (
            f" The dataset is small: a share measured on {held} hold-out rows is uncertain by "
            f"{min(0.5, 0.98 / max(held, 1) ** 0.5):.0%}, and free texts of a good model may stay "
            f"undecided on fewer than {FEW_HELD}."
        )
    if unseen:
        limitations += f" {unseen} classes have too few rows for one in the hold-out."
    return limitations


def run(ctx: StepContext) -> Evidence:
    """Remove near-duplicates and contradictions, split, thin repeated phrases."""
    config = ctx.config.data
    rows = rows_before(ctx)
    found = deduplicate(rows, config, read_alike(ctx, rows.column("row_id")))
    thinned = thin_answers(KeptRows(rows, found.reasons, found.splits), config)
    listed = [{**asdict(each), "share": round(each.share, 4)} for each in thinned.repeated]
    ctx.write_json(PHRASES, {"sentences": listed})
    written = write_rows(ctx.out / ROWS, thinned.rows)
    pairs = zip(found.splits, found.reasons, strict=True)
    splits = [split if why is None else None for split, why in pairs]
    left = write_decisions(
        ctx,
        rows,
        found.reasons,
        kind=found.views[1].kind.tolist(),
        kind_as_it_stands=found.views[0].kind.tolist(),
        own_holdout=rows.column("own_holdout"),
        conflict=found.conflict,
        near=list(map(int, found.near)),
        split=splits,
        in_holdout=[None if split is None else int(split == HOLDOUT) for split in splits],
        cross_similarity=found.cross_similarity,
        conversation=found.conversation,
        repeated_sentence=[int(number in thinned.having) for number in range(len(rows))],
    )
    sizes = {ROWS: written, REJECTED: left, AUDIT: len(rows)}
    return _conclude(ctx, rows, found, thinned, sizes)
