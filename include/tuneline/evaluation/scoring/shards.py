"""Answer one hold-out in several pods, and gather their answers.

Each of `evaluation.shards` pods starts the engine that ships, asks it every n-th row by row id, and
leaves a part in the run. holdout_performance compares the parts with what was to be asked, row by
row, and takes them as answers that are kept already: from there on nothing differs from one pod.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tuneline.artifacts.evaluation import ANSWER_HOLDOUT, HoldoutPart, ModelAnswers, holdout_part
from tuneline.artifacts.training import LORA
from tuneline.asking.asking import (
    Answer,
    KeptAnswers,
    LocalModel,
    collect,
    kept_by,
    keys_of,
    progress_of,
    request_key,
)
from tuneline.asking.models import Candidate, candidate, untuned
from tuneline.asking.rows import answer_limit, asked, of_split, turns_of
from tuneline.asking.tasks import Task, further_tasks, task_of
from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import TRAIN, Row
from tuneline.errors import UserError
from tuneline.evaluation.scoring.answer_tables import recorded_answers
from tuneline.evaluation.scoring.gate import fair_prompts
from tuneline.evaluation.scoring.ledger import Holdout, open_holdout, seen_by
from tuneline.evaluation.scoring.released import asked_of_released
from tuneline.evidence import Measurement, measure
from tuneline.run import Run
from tuneline.serving.client import Messages
from tuneline.step import apart
from tuneline.step_context import StepContext

# Time between two saves, whose answers a killed pod loses.
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Exam:
    """A candidate, the hold-out, the rows of it that are asked, and how answers are scored.

    `further` are the tasks besides the metric, and what too few rows have.

    `recorded` are answers that the candidate's bytes gave in earlier runs, by request.
    """

    chosen: Candidate
    opened: Holdout
    rows: list[Row]
    task: Task
    further: tuple[list[Task], list[str]]
    recorded: Mapping[str, Answer]
    left_out: list[Measurement]


def open_exam(ctx: StepContext) -> Exam:
    """Open the hold-out for the run's candidate; UserError if there is no row to ask."""
    chosen = candidate(ctx)
    opened = open_holdout(ctx, "score", chosen.model.sha256)
    if not opened.held:
        raise UserError(
            "the dataset has no hold-out row; raise data.holdout_share or name data.holdout"
        )
    whole, left_out = untouched(ctx, opened.held)
    rows, ids = questions_among(whole, opened.seen), {row.row_id for row in whole}
    last = [row.answer for row in whole]
    earlier = [row.answer for row in rows if row.row_id not in ids]
    task, recorded = task_of(ctx.config, last, earlier), recorded_answers(ctx, chosen, opened)
    further = further_tasks(task, last, earlier)
    return Exam(chosen, opened, rows, task, further, recorded, left_out)


def untouched(ctx: StepContext, held: Sequence[Row]) -> tuple[list[Row], list[Measurement]]:
    """Leave out the rows that the weights of a warm start have seen; UserError if none is left."""
    lora = LORA.find(ctx.run)
    if lora is None or lora.started_from is None:
        return list(held), []
    seen = seen_by(ctx, lora.started_from.version, held)
    rows = [row for row in held if row.row_id not in seen.ids]
    if not rows:
        raise UserError(
            f"training started from {lora.started_from.uri}, which was trained on every row of "
            "this hold-out; give the run new rows, or set training.warm_start: none"
        )
    return rows, [
        measure("rows_seen_through_warm_start", len(seen.ids), "rows"),
        measure(
            "warm_starts_without_rows", len(seen.unknown), "versions", "==", 0, on_breach="warn"
        ),
    ]


def questions_among(held: Sequence[Row], seen: Sequence[Row]) -> list[Row]:
    """Return a question for each answer of held-out rows.

    An earlier turn that begins a row of another split word for word was learned, so it is none.
    """
    known = {normalise(asked(turn)) for row in seen for turn in turns_of(row)[:-1]}
    return [
        turn
        for row in held
        for turn in turns_of(row)
        if turn is row or normalise(asked(turn)) not in known
    ]


@dataclass(frozen=True)
class Questions:
    """The prompts of one model, one for each row, and the limit of each answer, which all share.

    `scope` and `known` are those of its answers, as in `asking`.
    """

    who: str
    subject: LocalModel
    rows: Sequence[Row]
    prompts: Sequence[Messages]
    limits: Sequence[int]
    scope: str = ""
    known: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The key of each request: of the weights, the engine, its sizes, the prompt, the limit."""
        return keys_of(self.subject, self.prompts, self.limits)

    def of(self, shard: int, shards: int) -> Questions:
        """Return the part of a shard: every n-th row by row id."""
        dealt = sorted(range(len(self.rows)), key=lambda at: self.rows[at].row_id)[shard::shards]
        rows, prompts = [self.rows[at] for at in dealt], [self.prompts[at] for at in dealt]
        return replace(self, rows=rows, prompts=prompts, limits=self.limits[: len(rows)])


def questions_of(ctx: StepContext, exam: Exam) -> Iterator[Questions]:
    """Yield all that is asked of the hold-out: by candidate, base in two forms, released model."""
    deployment, rows = ctx.config.deployment, exam.rows
    plain, limits = [row.prompt for row in rows], [answer_limit(ctx.run)] * len(rows)
    tuned, base = LocalModel(exam.chosen.model, deployment), LocalModel(untuned(ctx), deployment)
    yield Questions("tuned model", tuned, rows, plain, limits, ctx.run.uri, exam.recorded)
    yield Questions("base model", base, rows, plain, limits)
    prompts, *_ = fair_prompts(ctx, exam.task, rows, of_split(exam.opened.seen, TRAIN))
    yield Questions("base model with examples", base, rows, prompts, limits)
    if (to_beat := asked_of_released(ctx, exam.chosen.model, rows)) is not None:
        old, asked = LocalModel(to_beat[0], deployment), to_beat[1]
        yield Questions("released model", old, asked, [row.prompt for row in asked], limits)


class KeptInRun(KeptAnswers):
    """The answers of a shard, kept in the run too: its next try may be on another machine."""

    def __init__(self, ctx: StepContext, shard: int) -> None:
        self._store, self._key = ctx.run.store, ctx.run.key("work", "holdout", f"{shard}.jsonl")
        self._saved = time.monotonic()
        path = ctx.scratch / "answers.jsonl"
        if self._store.exists(self._key):
            self._store.get_file(self._key, path)
        super().__init__(path)

    def add(self, key: str, answer: str | float) -> None:
        """Append an answer, and save all of them every 30 seconds."""
        super().add(key, answer)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self._store.put_file(self._key, self.path)
            self._saved = time.monotonic()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self:
            self._store.put_file(self._key, self.path)


def answer_shards(run_uri: str, shard: int | None = None) -> list[str]:
    """Answer one part of the hold-out, or all in turn, and return a line for each."""
    run = Run.open(run_uri)
    shards = range(run.config.evaluation.shards)
    if shard is not None and shard not in shards:
        raise UserError(f"there is no shard {shard} in {run.uri}; they are 0 to {shards[-1]}")
    return [_answer(run, number) for number in (shards if shard is None else [shard])]


def _answer(run: Run, shard: int) -> str:
    started, shards = time.monotonic(), run.config.evaluation.shards
    with apart(run, f"{ANSWER_HOLDOUT}[{shard}]") as ctx, KeptInRun(ctx, shard) as kept:
        exam = open_exam(ctx)
        parts = [questions.of(shard, shards) for questions in questions_of(ctx, exam)]
        done = HoldoutPart(
            of=(run.uri, exam.opened.sha256, shard, shards),
            answers={part.who: _ask(ctx, part, kept) for part in parts},
            seconds=round(time.monotonic() - started, 1),
        )
        holdout_part(shard).put(run, done)
    asked = sum(len(part.rows) for part in parts)
    return f"shard {shard} of {shards}: {asked} answers, {done.seconds:.0f} s"


def _ask(ctx: StepContext, part: Questions, kept: KeptAnswers) -> ModelAnswers:
    known = {**kept_by(part.subject, part.scope), **part.known}
    progress, asked = progress_of(ctx, part.who), (part.subject, part.prompts, part.limits)
    texts, _ = collect(*asked, kept, known=known, progress=progress)
    rows = [(row.row_id, text, text.cut) for row, text in zip(part.rows, texts, strict=True)]
    return ModelAnswers(asked=request_key(part.keys), rows=rows)


def gather(ctx: StepContext, exam: Exam) -> list[Measurement]:
    """Take the answers of all pods as kept ones; without shards there are none.

    UserError if a part is missing, of another run or hold-out, of other weights, or if a row is
    missing or doubled.
    """
    shards = ctx.config.evaluation.shards
    if shards == 1:
        return []
    parts = [_part(ctx, exam, shard) for shard in range(shards)]
    for questions in questions_of(ctx, exam):
        with kept_by(questions.subject, questions.scope) as kept:
            for shard, part in enumerate(parts):
                wanted = questions.of(shard, shards)
                for key, answer in zip(wanted.keys, _checked(ctx, wanted, part), strict=True):
                    if kept.get(key) != answer:
                        kept.add(key, answer)
    return [measure("holdout_shards", shards, "pods")]


def _part(ctx: StepContext, exam: Exam, shard: int) -> HoldoutPart:
    document, part = holdout_part(shard), holdout_part(shard).find(ctx.run)
    if part is None:
        raise _refused(ctx, shard, "has not been answered")
    wanted = (ctx.run.uri, exam.opened.sha256, shard, ctx.config.evaluation.shards)
    if part.of != wanted:
        raise _refused(ctx, shard, f"was answered for {part.of}, not for {wanted}")
    document.note(ctx)
    return part


def _checked(ctx: StepContext, wanted: Questions, part: HoldoutPart) -> list[Answer]:
    """Return the answers of a part in the order of its questions, if it has these and no others."""
    given, ids = part.answers.get(wanted.who), [row.row_id for row in wanted.rows]
    if given is None or given.asked != request_key(wanted.keys):
        why = f"has no {wanted.who} with the weights, the engine and the prompts of this run"
        raise _refused(ctx, part.of[2], why)
    rows = Counter(row_id for row_id, *_ in given.rows)
    answers = {row_id: Answer(text, cut=cut) for row_id, text, cut in given.rows}
    missing, extra = Counter(ids) - rows, rows - Counter(ids)
    if wrong := sorted(missing or extra):
        what = "lacks" if missing else "has twice, or from another shard,"
        raise _refused(ctx, part.of[2], f"{what} rows of the {wanted.who}: {', '.join(wrong[:5])}")
    return [answers[row_id] for row_id in ids]


def _refused(ctx: StepContext, shard: int, why: str) -> UserError:
    again = f"clear the task {ANSWER_HOLDOUT}, or run `tuneline run answer --shard {shard} --run"
    return UserError(f"shard {shard} of the hold-out {why}; {again} {ctx.run.uri}`")
