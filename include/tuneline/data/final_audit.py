"""final_audit: measure the final rows again, after every step has changed them.

The name of a measurement starts with the item for whose verdict it counts. Up-sampling is a weight,
so a repeated row is a fault too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import (
    DATASET,
    DATASET_CARD,
    DATASET_VERSION,
    SCRUBBED,
    SOURCES,
    TRIGGERS,
    UNSCRUBBED,
    DatasetDocument,
    PromptFormat,
    audit_of,
)
from tuneline.bases import base_of
from tuneline.catalogue import DATA_ORDER
from tuneline.config import DataConfig, PipelineConfig
from tuneline.config.data import TargetFormat
from tuneline.data.conversations.answers import AnswerCounts, check_answers
from tuneline.data.conversations.reading import Outcome
from tuneline.data.conversations.turn_checks import check_turns
from tuneline.data.engine import engine_of
from tuneline.data.near_duplicates.compared_text import compared_texts, question, similarity_texts
from tuneline.data.near_duplicates.phrases import find_triggers
from tuneline.data.near_duplicates.split import torn
from tuneline.data.near_duplicates.witness import cross_pairs
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import Settings
from tuneline.data.pii.find.texts import Shared, shared_parts
from tuneline.data.pii.measure.witness import answers_torn, is_cut
from tuneline.data.pii.replace.scrubber import (
    CHUNK,
    other_hits,
    residual_hits,
    settings_of,
    shape_finder,
)
from tuneline.data.pii.review.review import asked_review
from tuneline.data.rendering.renderer import Renderer, chat_template, compare
from tuneline.data.schema_validation import markers_of
from tuneline.data.tables import dataset_card
from tuneline.data.tables.rows import (
    HOLDOUT,
    SPLITS,
    TRAIN,
    VALIDATION,
    Message,
    Row,
    StoredRows,
    base_id,
    column_of,
    stored_dataset,
    surrogates_of,
    with_stand_ins,
)
from tuneline.errors import UserError
from tuneline.evidence import Finding, Measurement, Record, breach_in, measure
from tuneline.machine.workers import HERE, Engine, Kernel, as_batch, rows_in, worker_count
from tuneline.models.tool_turns import declares_tools
from tuneline.statistics import share_of

if TYPE_CHECKING:
    import pyarrow as pa

    from tuneline.step_context import StepContext

# Rows that the model reads again, drawn by their ids, and the share of their values that it may
# still find: surrogates change the context of words that it was in doubt about (up to a ninth was
# seen, in prompts of 4,000 tokens). A share of rows would grow with their length.
READ_AGAIN, MAX_FOUND_AGAIN = 1_024, 0.2
# Training rows from elsewhere than production in which triggers are looked for, about.
MOST_SEARCHED = 50_000
# With fewer, the words of a class come with too few other classes to be told from a trigger.
FEWEST_CLASSES = 5
# Rows in memory at once.
_AT_ONCE = 1 << 12


def shared_system(rows: Iterable[Row]) -> str | None:
    """Return the system turn that every row begins with, None if they differ or have none.

    None also where it declares tools, which a request has in a field.
    """
    heads = (row.messages[0] for row in rows)
    first = next(heads, None)
    if first is None or first["role"] != "system" or any(head != first for head in heads):
        return None
    return None if declares_tools([first]) else first["content"]


def dataset_version(rows: Sequence[Row], weights: Sequence[float]) -> str:
    """Hash the turns, split, label and weight of rows; order, file names and lines do not count."""
    entries = (
        [row.messages, row.split, row.label, round(weight, 9), *filter(None, [row.served_by])]
        for row, weight in zip(rows, weights, strict=True)
    )
    texts = (json.dumps(entry, ensure_ascii=False, sort_keys=True) for entry in entries)
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass
class Format:
    """Rows that break a rule, whose tokens differ, or without an exact mask; tokens of each row.

    `answer` are the tokens of the longest answer, `prompt` those of the longest prompt; `with_pii`
    is the result of `rows_with_pii`, `again` that of `found_again`.
    """

    invalid: int = 0
    mismatched: int = 0
    unmasked: int = 0
    lengths: list[int] = field(default_factory=list)
    answer: int = 0
    prompt: int = 0
    with_pii: int = 0
    again: tuple[int, int] = (0, 0)


def measure_format(rows: Sequence[Row], renderer: Renderer, engine: Engine = HERE) -> Format:
    """Check turns, tokens, masks and lengths of the rows as they are now."""
    found = Format()
    parts = (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
    batches = (as_batch(row.messages for row in part) for part in parts)
    make = partial(_comparer, renderer.tokenizer, renderer.target)
    for batch in engine.map(make, batches, 1):
        for broken, (_, equal, exact, tokens, answer, prompt) in rows_in(batch):
            found.invalid += broken or equal is None
            found.mismatched += equal is False
            found.unmasked += not exact
            found.lengths.append(tokens)
            found.answer = max(found.answer, answer)
            found.prompt = max(found.prompt, prompt)
    return found


def refuse_cutting(config: PipelineConfig, needed: PromptFormat) -> None:
    """Refuse, before training, a limit or a context that would cut expected answers; UserError."""
    longest, prompt = needed.answer_tokens_max or 0, needed.prompt_tokens_max or 0
    limit, context = config.evaluation.max_new_tokens, config.deployment.context_tokens
    # The others refuse a request whose limit is beyond the context, llama.cpp ends its answer.
    if config.deployment.engine != "llama_cpp" and prompt + (limit or longest) > context:
        raise UserError(
            f"deployment.context_tokens {context} has no room for an answer of {limit or longest} "
            f"tokens behind the longest prompt, of {prompt}: set {prompt + (limit or longest)}"
        )
    if limit is not None and limit < longest:
        raise UserError(
            f"evaluation.max_new_tokens {limit} would cut expected answers, the longest of which "
            f"has {longest} tokens: leave it out, or set {needed.answer_limit}"
        )


def _comparer(tokenizer: Any, target: TargetFormat) -> Kernel:
    renderer = Renderer(tokenizer, target)
    markers = markers_of(renderer)

    def measured(batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = list(rows_in(batch))
        broken = (check_turns(messages, markers) is not None for messages in rows)
        return as_batch(zip(broken, compare(rows, renderer), strict=True))

    return measured


def invalid_answers(rows: Sequence[Row], config: DataConfig) -> int:
    """Count answers that no longer satisfy the configured schema; 0 without one."""
    if config.answer_schema is None:
        return 0
    counts = AnswerCounts()
    for batch in _outcomes(rows):
        counts.add(batch, config)
    invalid = 0
    for batch in _outcomes(rows):
        # Counting gives the rows whose JSON hides broken text their reason.
        AnswerCounts().add(batch, config)
        check_answers(batch, config, counts)
        invalid += sum(outcome.reason is not None for outcome in batch)
    return invalid


def _outcomes(rows: Iterable[Row]) -> Iterator[list[Outcome]]:
    """Yield the rows as the checks of answers take them, some at a time."""
    outcomes = (
        Outcome(row.row_id, row.source_file, row.source_line, "", False, row.label, row.messages)
        for row in rows
    )
    return iter(lambda: list(islice(outcomes, _AT_ONCE)), [])


def _chunks(
    rows: Iterable[Row], surrogates: Mapping[str, Sequence[tuple[str, str]]]
) -> Iterator[pa.RecordBatch]:
    pieces = (
        (row.messages, [value for _, value in surrogates.get(base_id(row.row_id), ())])
        for row in rows
    )
    return map(as_batch, iter(lambda: list(islice(pieces, CHUNK)), []))


def rows_with_pii(
    rows: Sequence[Row],
    surrogates: Mapping[str, Sequence[tuple[str, str]]],
    config: DataConfig,
    engine: Engine = HERE,
) -> int:
    """Count rows in which patterns still find personal data other than surrogates."""
    make = partial(_pii_counter, config)
    counted = engine.map(make, _chunks(rows, surrogates), worker_count(len(rows)))
    return sum(map(sum, map(rows_in, counted)))


def _pii_counter(config: DataConfig) -> Kernel:
    finder = shape_finder(config)
    return lambda batch: as_batch(
        residual_hits(messages, values, finder=finder) > 0 for messages, values in rows_in(batch)
    )


def found_again(
    rows: StoredRows,
    surrogates: Mapping[str, Sequence[tuple[str, str]]],
    config: DataConfig,
    engine: Engine = HERE,
) -> tuple[int, int]:
    """Have the model read some rows, cut elsewhere; return the values left, and with surrogates."""
    settings = replace(settings_of(config), shifted=True)
    if not settings.models:
        return 0, 0
    digests = [hashlib.sha256(row_id.encode()).digest() for row_id in rows.column("row_id")]
    last = sorted(digests)[:READ_AGAIN][-1]
    some = list(rows.chosen([digest <= last for digest in digests]))
    make = partial(_model_counter, settings, shared_parts([row.messages for row in some]))
    counted = engine.map(make, _chunks(some, surrogates), worker_count(len(some), CHUNK))
    left = sum(map(sum, map(rows_in, counted)))
    return left, left + sum(len(surrogates.get(base_id(row.row_id), ())) for row in some)


def _model_counter(settings: Settings, shared: Shared) -> Kernel:
    detector = Detector(settings)

    def count(batch: pa.RecordBatch) -> pa.RecordBatch:
        turns, values = zip(*rows_in(batch), strict=True)
        return as_batch(
            sum(len(other_hits(text, hits, own)) for text, hits in found.items())
            for found, own in zip(detector.rows(turns, shared), values, strict=True)
        )

    return count


def compared(rows: StoredRows, before: StoredRows) -> list[str]:
    """Return the questions as they are compared; the rows after scrubbing know their surrogates."""
    stand_ins = {row.row_id: row.stand_ins for row in with_stand_ins(before)}
    known = (replace(row, stand_ins=stand_ins.get(row.row_id, ())) for row in rows)
    return similarity_texts(known, before)


def leaking(
    rows: StoredRows, unscrubbed: StoredRows, sides: Sequence[int], threshold: float
) -> int:
    """Count rows near to one that is held out from them, before scrubbing or as they stand."""
    own = list(map(question, rows))
    texts, before = compared_texts(own, own), list(map(question, unscrubbed))
    raw = dict(zip(unscrubbed.column("row_id"), compared_texts(before, before), strict=True))
    ids, as_they_stand = list(map(base_id, rows.column("row_id"))), len(texts)
    changed = [n for n, row_id in enumerate(ids) if raw.get(row_id, texts[n]) != texts[n]]
    texts += [raw[ids[number]] for number in changed]
    of, other = [*range(as_they_stand), *changed], set(changed)
    found = set()
    for one, two, _ in cross_pairs(texts, [sides[number] for number in of], threshold):
        # A row as it stands is no twin of another one before scrubbing, unless it is unchanged.
        forms = {n >= as_they_stand for n in (one, two) if of[n] in other}
        if len(forms) < 2:
            found.add(of[one])
    return len(found)


def torn_rows(
    rows: StoredRows, scrubbed: StoredRows, unscrubbed: StoredRows, label_field: str | None
) -> int:
    """Count rows with an answer that scrubbing tore from the turns before it."""
    made, before = ({row.row_id: row.messages for row in some} for some in (scrubbed, unscrubbed))
    found = 0
    for row in rows:
        source = base_id(row.row_id)
        whole = made.get(source, row.messages)
        if len(row.messages) > len(whole):
            continue
        at = _turns_of(row.messages, whole)
        old = [before.get(source, whole)[turn] for turn in at]
        # Balancing may take a sentence out of an answer.
        now = [
            whole[turn] if is_cut(whole[turn], message) else message
            for turn, message in zip(at, row.messages, strict=True)
        ]
        found += answers_torn(old, now, label_field) > 0
    return found


def _turns_of(part: Sequence[Message], whole: Sequence[Message]) -> list[int]:
    """Return which turns of a row a part of it has, by those that are the same."""
    system = int(part[0]["role"] == "system")
    starts = range(system, len(whole) - len(part) + system + 1)
    start = max(starts, key=lambda at: sum(map(eq, whole[at:], part[system:])))
    return [*range(system), *range(start, start + len(part) - system)]


def search_triggers(ctx: StepContext, facts: Sequence[Row], texts: Sequence[str]) -> Finding:
    """Name what forces a label in the training rows: those of production, and a share of others."""
    labelled = [
        (row, text)
        for row, text in zip(facts, texts, strict=True)
        if row.split == TRAIN and row.label is not None
    ]
    every = 1 + len(labelled) // MOST_SEARCHED
    chosen = [pair for n, pair in enumerate(labelled) if pair[0].served_by or n % every == 0]
    ids, labels = ([getattr(row, name) for row, _ in chosen] for name in ("row_id", "label"))
    name, classes = "deduplication.phrases_that_force_a_label", len(set(labels))
    if classes < FEWEST_CLASSES:
        why = f"not searched: there are {classes} classes, of {FEWEST_CLASSES} needed"
        return Finding([measure(name, why, "")], "")
    triggers = find_triggers(ids, [text for _, text in chosen], labels)
    TRIGGERS.write(ctx, TRIGGERS.model(triggers))
    named = [f" {one.phrase!r} forces {one.label!r} in {len(one.rows)} rows." for one in triggers]
    breach = breach_in(ctx.config.profile)
    count = measure(name, len(triggers), "phrases", "==", 0, on_breach=breach)
    return Finding([count], "".join(named[:3]))


def _measurements(
    rows: StoredRows,
    weights: Sequence[float],
    before: StoredRows,
    *,
    leaks: int,
    torn_answers: int,
    found: Format,
    limit: int,
    config: DataConfig,
) -> list[Measurement]:
    counted, splits = column_of(rows, "n_tokens"), column_of(rows, "split")
    stale = sum(count != length for count, length in zip(counted, found.lengths, strict=True))
    # The dataset's own hold-out is taken as it is and does not count.
    named = {row.row_id: row.conversation for row in before.facts() if not row.own_holdout}
    sources = [base_id(row_id) for row_id in rows.column("row_id")]
    torn_in_two = torn(map(named.get, sources), splits)
    # The hold-out may repeat itself, and a weight is not a repetition.
    turns = (json.dumps(row.messages, sort_keys=True) for row in rows if row.split != HOLDOUT)
    copies = Counter(hashlib.sha256(text.encode()).digest() for text in turns)
    repeated, finder = copies.total() - len(copies), shape_finder(config)
    # A CSV's column of classes may stand in no turn.
    labels = sum(bool(finder(label)) for label in set(column_of(rows, "label")) if label)
    outside = sum(not 0 < weight <= config.max_upsampling for weight in weights)
    least = share_of(*found.again).lower if found.again[1] else 0.0

    def none(name: str, count: int, unit: str = "rows") -> Measurement:
        return measure(name, count, unit, "==", 0)

    return [
        none("schema_validation.invalid_rows", found.invalid),
        none("schema_validation.token_mismatches", found.mismatched),
        none("schema_validation.inexact_masks", found.unmasked),
        none("schema_validation.invalid_answers", invalid_answers(rows, config)),
        measure("token_length_audit.tokens_max", max(found.lengths), "tokens", "<=", limit),
        none("token_length_audit.stale_counts", stale),
        measure("deduplication.cross_split_near_duplicates", leaks, "rows", "<=", 0),
        none("deduplication.rows_torn_across_splits", torn(sources, splits)),
        none("deduplication.conversations_torn_across_splits", torn_in_two, "conversations"),
        measure("deduplication.repeated_rows", repeated, "rows", "==", 0, on_breach="warn"),
        none("pii_scrubbing.rows_with_pattern_hits", found.with_pii),
        none("pii_scrubbing.torn_copies", torn_answers),
        none("pii_scrubbing.labels_with_pattern_hits", labels, "labels"),
        measure("pii_scrubbing.values_read_again", found.again[1], "values"),
        measure("pii_scrubbing.values_found_again", found.again[0], "values"),
        measure("pii_scrubbing.values_found_again_at_least", least, "share", "<=", MAX_FOUND_AGAIN),
        none("distribution_balancing.weights_out_of_range", outside),
    ]


def run(ctx: StepContext) -> Record:
    """Measure format, length, leakage and personal data again; name the dataset's version."""
    import pyarrow.parquet as pq

    from tuneline.models import load_tokenizer

    config = ctx.config.data
    engine = engine_of(config)
    rows, weights = stored_dataset(DATASET.fetch(ctx))
    before = StoredRows(SCRUBBED.fetch(ctx))
    facts = rows.facts()
    base = base_of(ctx, weights=False)
    limit = min(config.max_tokens, base.context_length)
    with ThreadPoolExecutor(1) as beside:
        # In processes of its own, while this one renders and hashes.
        surrogates = surrogates_of(before)
        counting = beside.submit(rows_with_pii, rows, surrogates, config, engine)
        # The thread looks for the model's files where this step does: in the store of its run.
        reading = beside.submit(copy_context().run, found_again, rows, surrogates, config, engine)
        renderer = Renderer(load_tokenizer(base.path), config.target_format)
        found = measure_format(rows, renderer, engine)
        version = dataset_version(rows, weights)
        found.with_pii, found.again = counting.result(), reading.result()
    template = chat_template(renderer.tokenizer, config.target_format)
    written = PromptFormat(
        target=config.target_format,
        template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        base_model=ctx.config.base_model,
        base_digest=base.digest,
        tokens_max=max(found.lengths),
        answer_tokens_max=found.answer,
        prompt_tokens_max=found.prompt,
        limit=limit,
    )
    refuse_cutting(ctx.config, written)
    reasons = {
        item: pq.read_table(audit_of(item).fetch(ctx), columns=["reason"])["reason"].to_pylist()
        for item in DATA_ORDER
    }
    document = DatasetDocument(
        name=ctx.config.name,
        version=version,
        **dataset_card.count_rows(facts),
        sources=dataset_card.describe_sources(SOURCES.read(ctx).root, facts, config),
        removed=dataset_card.describe_removed(reasons, config),
        pii=dataset_card.describe_measures(ctx.entry(SCRUBBED.step)),
        format=written,
        system=shared_system(rows),
        reproduce=dataset_card.reproduce(config, ctx.config.base_model),
    )
    texts = compared(rows, before)
    forced = search_triggers(ctx, facts, texts)
    sides = [SPLITS.index(row.split) for row in facts]
    unscrubbed = StoredRows(UNSCRUBBED.fetch(ctx))
    leaks = leaking(rows, unscrubbed, sides, config.near_duplicate_jaccard)
    DATASET_VERSION.write(ctx, document)
    DATASET_CARD.path(ctx).write_text(dataset_card.card(document))
    splits = Counter(row.split for row in facts)
    return ctx.record(
        f"{len(rows)} rows measured again ({splits[TRAIN]} training, {splits[VALIDATION]} "
        f"validation, {splits[HOLDOUT]} hold-out), dataset version {version[:12]}."
        f"{forced.sentence}",
        [
            measure("rows", len(rows), "rows", ">=", 1),
            measure("dataset_version", version, "sha256"),
            *_measurements(
                rows,
                weights,
                before,
                leaks=leaks,
                torn_answers=torn_rows(rows, before, unscrubbed, config.label_field),
                found=found,
                limit=limit,
                config=config,
            ),
            *forced.measurements,
            *asked_review(ctx),
        ],
    )
