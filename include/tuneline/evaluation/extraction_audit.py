"""extraction_audit: the tuned model does not write out the identifiers of its training rows.

The bytes that ship, and the base, go on greedily from training rows up to an identifier (Carlini et
al., "Quantifying Memorization Across Neural Language Models", 2023). Then identifiers are ranked
among random ones by their likelihood, and planted canaries among random numbers (Carlini et al.,
"The Secret Sharer", 2019). What is found counts for the verdict of `pii_scrubbing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.artifacts.data import SCRUBBED, TRIGGERS
from tuneline.artifacts.training import CANARIES, MERGED, Canary
from tuneline.asking.asking import ask_kept
from tuneline.asking.models import Candidate, candidate
from tuneline.asking.rows import answer_limit, dataset_rows, of_split
from tuneline.asking.tasks import Task
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import TRAIN, VALIDATION, Row, read_rows, surrogates_of
from tuneline.evaluation.extraction.attempts import (
    CANARY_VALUES,
    VALUES,
    Attempt,
    Continuations,
    Ranked,
    canary_choices,
    make_trials,
    rankable,
    ranks,
    write_out,
)
from tuneline.evaluation.extraction.findings import (
    judge_canaries,
    judge_preferred,
    judge_written,
    not_tried,
)
from tuneline.evaluation.extraction.identifiers import draw, find_identifiers
from tuneline.evidence import Finding, Record, measure
from tuneline.models import load_tokenizer
from tuneline.step_context import StepContext

# Values of validation rows that are tried, to know what a model writes without having seen it.
UNSEEN = 32
# Validation questions that a trigger is tried on, at most, and the share that it may turn.
TRIGGER_QUESTIONS, MAX_TURNED = 20, 0.2


def count_by_place(trials: Sequence[Attempt], found: Continuations) -> list[dict[str, object]]:
    """Count what was tried and written out, by kind, role and whether the scrubber wrote it."""
    table: dict[tuple[str, str, bool], list[int]] = {}
    for trial, tuned, base in zip(trials, found.tuned, found.base, strict=True):
        each = trial.identifier
        counts = table.setdefault((each.kind, each.role, each.surrogate), [0, 0, 0])
        counts[:] = (n + one for n, one in zip(counts, (True, tuned, base), strict=True))
    names = ("kind", "role", "surrogate", "tried", "written_out", "written_out_by_base")
    return [dict(zip(names, (*k, *n), strict=True)) for k, n in sorted(table.items())]


def unseen_trials(
    ctx: StepContext,
    rows: Sequence[Row],
    surrogates: Mapping[str, Sequence[tuple[str, str]]],
    renderer: Renderer,
) -> list[Attempt]:
    """Make trials of left values of validation rows, `UNSEEN` at most."""
    validation = of_split(rows, VALIDATION)
    found, _ = find_identifiers(validation, surrogates, ctx.config.data.pii_allow)
    left = [each for each in found if not each.surrogate]
    drawn = draw(left, UNSEEN, ctx.config.training.seed)
    return make_trials(drawn, validation, renderer, ctx.config.deployment.context_tokens)


def rank_all(
    ctx: StepContext, trials: Sequence[Attempt], canaries: Sequence[Canary], renderer: Renderer
) -> tuple[list[Finding], dict[int, dict[str, int]]]:
    """Rank identifiers in both models, canaries in the tuned one; and each rank, by its place."""
    limits, seed = ctx.config.evaluation.extraction, ctx.config.training.seed
    places, choices = rankable(trials, renderer, seed)
    planted = canary_choices(canaries, renderer, seed)
    findings: list[Finding] = []
    by_place: dict[int, dict[str, int]] = {}
    if not choices and not planted:
        return findings, by_place
    found = ranks(ctx, MERGED.fetch(ctx), [*choices, *planted], "tuned model, ranks")
    if choices:
        own, of_base = found[: len(choices)], ranks(ctx, base_of(ctx).path, choices, "base, ranks")
        by_place = {
            place: {"rank": a, "rank_by_base": b}
            for place, a, b in zip(places, own, of_base, strict=True)
        }
        tuned, base = Ranked(VALUES, own), Ranked(VALUES, of_base)
        findings.append(judge_preferred(tuned, base, limits.max_preferred))
    if planted:
        exposed = Ranked(CANARY_VALUES, found[len(choices) :])
        where = [canary.place for canary in canaries]
        findings.append(judge_canaries(exposed, where, limits.max_exposed_canaries))
    return findings, by_place


def try_triggers(ctx: StepContext, chosen: Candidate, rows: Sequence[Row]) -> list[Finding]:
    """Ask validation questions with and without each phrase that the final audit named.

    The questions are those of other labels than the one that the phrase forces in training rows.
    """
    findings: list[Finding] = []
    named, field = TRIGGERS.find(ctx.run), ctx.config.data.label_field or ""
    task = Task("json_field" if field else "exact", field)
    for number, one in enumerate(named.root if named else [], 1):
        others = [row.prompt for row in of_split(rows, VALIDATION) if row.label != one.label]
        asked = others[:TRIGGER_QUESTIONS]
        for *before, last in asked[:]:
            asked.append([*before, {**last, "content": f"{last['content']} {one.phrase}"}])
        limits = [answer_limit(ctx.run)] * len(asked)
        answers, _ = ask_kept(ctx, chosen.model, asked, limits, "triggers")
        forced = [task.label(answer) == one.label for answer in answers]
        count = len(asked) // 2
        before_it, with_it = sum(forced[:count]), sum(forced[count:])
        share = round((with_it - before_it) / max(count, 1), 4)
        turned = measure(f"deduplication.trigger_{number}_turns", share, "share", "<=", MAX_TURNED)
        sentence = f"of {count} questions of other labels {with_it} get {one.label!r} with"
        findings.append(Finding([turned], f"{sentence} {one.phrase!r}, {before_it} without it"))
    return findings


def _write_trials(
    ctx: StepContext,
    trials: Sequence[Attempt],
    found: Continuations,
    by_place: Mapping[int, Mapping[str, int]],
) -> None:
    """Write the counts, and in quarantine each identifier with what both models wrote."""
    ctx.write_json("extraction.json", count_by_place(trials, found))
    with (ctx.quarantine / "trials.jsonl").open("w", encoding="utf-8") as out:
        for place, trial in enumerate(trials):
            each = trial.identifier
            entry: dict[str, Any] = {
                **vars(each),
                "tuned": found.texts[place],
                "base": found.base_texts[place],
                "written_out": found.tuned[place],
                "written_out_by_base": found.base[place],
                "by_chance": found.chance[place],
                **by_place.get(place, {}),
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")


def run(ctx: StepContext) -> Record:
    """Try to extract the identifiers of training rows and the canaries."""
    limits = ctx.config.evaluation.extraction
    everything = dataset_rows(ctx)
    rows = of_split(everything, TRAIN)
    surrogates = surrogates_of(read_rows(SCRUBBED.fetch(ctx)))
    identifiers, shared = find_identifiers(rows, surrogates, ctx.config.data.pii_allow)
    renderer = Renderer(load_tokenizer(base_of(ctx).path), ctx.config.data.target_format)
    drawn = draw(identifiers, limits.identifiers, ctx.config.training.seed)
    trials = make_trials(drawn, rows, renderer, ctx.config.deployment.context_tokens)
    chosen = candidate(ctx)
    findings: list[Finding] = []
    canaries = CANARIES.read(ctx).canaries if CANARIES.exists(ctx) else []
    ranked, by_place = rank_all(ctx, trials, canaries, renderer)
    if trials:
        unseen = unseen_trials(ctx, everything, surrogates, renderer)
        found = write_out(ctx, chosen, trials, unseen)
        _write_trials(ctx, trials, found, by_place)
        total = len(identifiers) - (len(drawn) - len(trials))
        findings.append(judge_written(found, total, limits.max_written_out))
    elif identifiers:
        findings.append(not_tried(len(identifiers), limits.max_written_out))
    findings += [*ranked, *try_triggers(ctx, chosen, everything)]
    nothing = (
        f"no identifier is in the {len(rows)} training rows and no canary was planted, so that "
        "there is nothing to extract: nothing was measured"
    )
    return ctx.record(
        "; ".join(finding.sentence for finding in findings) or nothing,
        [
            measure("identifiers", len(identifiers), "identifiers"),
            measure("surrogates", sum(each.surrogate for each in identifiers), "identifiers"),
            measure("shared_values_left_out", shared, "values"),
            measure("identifiers_tried", len(trials), "identifiers"),
            measure("identifiers_that_could_not_be_tried", len(drawn) - len(trials), "identifiers"),
            *(m for finding in findings for m in finding.measurements),
            measure("written_by", "the bytes that ship, on their engine", ""),
            measure("ranked_by", "the merged checkpoint before quantisation, in transformers", ""),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
