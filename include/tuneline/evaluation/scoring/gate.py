"""Decide whether the candidate is good enough: against the base, trivial answers and a floor.

It must be better than the base as it is asked, the base at its best, a constant answer and the
question itself, each by the lower end of the paired interval, and reach the floor: all of them, so
that no correction is due (an intersection-union test). Where the lower end is not above the limit,
an estimate that is makes the claim inconclusive, with the rows that would show it; one that is not
fails it.

A base that scores 0 because it wraps its JSON in prose, or was not given the labels, says nothing
of what training taught. So it is also judged with its answer found in prose, and asked with an
instruction and a few training rows, the same for every row and spread over the labels.

A tuned model that a constant answer equals has learned no task. One that the nearest training rows
equal may still be of use, so that warns; one that is shown to be worse stops production.

What the metric does not see, such as the other fields of JSON answers, is judged part by part:
better than one constant answer; texts are also not worse than the base at its best by more than a
margin, and short values not shown to be. Where one value stands in most rows, hardly any are left
to be better on; then the part must not be shown to be worse than that value by more than the
margin.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tuneline.asking.answer_values import is_code
from tuneline.asking.asking import ask_kept
from tuneline.asking.models import untuned
from tuneline.asking.rows import answer_limit, asked, spread, tokens_at_most, turns_of
from tuneline.asking.tasks import Judged, Task, compare, rows_needed
from tuneline.config import PipelineConfig
from tuneline.data.tables.rows import Message, Row
from tuneline.evaluation.scoring.answer_tables import (
    confusion,
    judge_interrupted,
    label_measurements,
    stated,
    wrong_rows,
)
from tuneline.evidence import Breach, Finding, Measurement, Rule, measure
from tuneline.statistics import SEED, Interval, z_shown
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Claim:
    """A claim about the candidate, such as "better than the base": an estimate is above a limit.

    `name` is the estimate's in the evidence; `judged` has the rows that it rests on; `rule` is `>`
    or `>=`.
    """

    name: str
    about: str
    estimate: Interval
    judged: Judged
    limit: float
    rule: Rule = ">"

    @property
    def rows(self) -> int:
        """The rows that count."""
        return len(self.judged.units)

    @property
    def shown(self) -> bool:
        """True if the interval lies above the limit."""
        lower = round(self.estimate.lower, 4)
        return lower >= self.limit if self.rule == ">=" else lower > self.limit

    @property
    def rows_needed(self) -> int | None:
        """Rows that would show an undecided claim; None if it is shown, or fails."""
        if self.shown:
            return None
        return rows_needed(self.estimate, self.rows, self.limit, self.judged.tail)

    def measurements(self, breach: Breach | None = None) -> list[Measurement]:
        """State the estimate and its interval; a `breach` of None is decided by the estimate."""
        name, needed = self.name, self.rows_needed
        breach = breach or ("fail" if needed is None else "inconclusive")
        value, lower, upper = stated(name, self.estimate)
        ruled = (lower.value, "share", self.rule, self.limit)
        more = [] if needed is None else [measure(f"rows_needed_for_{name}", needed, "rows")]
        return [value, measure(lower.name, *ruled, on_breach=breach), upper, *more]


def more_rows(claims: list[Claim]) -> int | None:
    """Return how many more rows the undecided claims need; None if all are decided."""
    return max((c.rows_needed - c.rows for c in claims if c.rows_needed is not None), default=None)


def undecided_sentence(claims: list[Claim]) -> str:
    """Return a part of a sentence that names the claims which need more rows; empty if none do."""
    if not (open_claims := [claim.about for claim in claims if claim.rows_needed is not None]):
        return ""
    return (
        f"; these rows do not show that it is {' and '.join(open_claims)}: "
        f"about {more_rows(claims)} more rows are needed to show it with a probability of 80 %"
    )


# Answers that are tried as the constant one, and training rows that they are tried on.
CONSTANTS, TRIED_ON = 30, 200
# Training rows that are searched for the most similar one; more are drawn from.
SEARCHED = 20_000
# Hold-out rows that are compared at once: their similarities take 10 MB.
_BLOCK = 64


def constant_answer(task: Task, train: Sequence[Row], seed: int) -> str:
    """Return the training answer that, given to every row, scores best on the training rows.

    For a task with labels it is an answer with the most frequent one.
    """
    train = [row for row in train if task.judges(row.answer)]
    if not train:
        return ""
    if task.has_labels:
        named = [task.label(row.answer) for row in train]
        [(most, _)] = Counter(named).most_common(1)
        return train[named.index(most)].answer
    if task.metric == "scorer":
        # Likeness chooses it: a team's own metric may take seconds for an answer.
        task = Task("chrf")
    often = [text for text, _ in Counter(row.answer for row in train).most_common(CONSTANTS)]
    tried = [row.answer for row in spread(train, TRIED_ON, seed)]
    return max(often, key=lambda text: sum(task.score(text, expected) for expected in tried))


def nearest_answers(train: Sequence[Row], rows: Sequence[Row], seed: int) -> list[str]:
    """Return the answer of the most similar of `SEARCHED` training rows for each row.

    Similar are questions with a high cosine of their TF-IDF vectors over n-grams of 2 to 4 letters.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = spread(train, SEARCHED, seed)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    vectors = vectorizer.fit_transform([f"{asked(row)} " for row in known]).T.tocsr()
    questions = vectorizer.transform([f"{asked(row)} " for row in rows])
    best: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        similarity = (questions[start : start + _BLOCK] @ vectors).toarray()
        best += similarity.argmax(axis=1).tolist()
    return [known[at].answer for at in best]


ANSWERS = "fair_base_answers.jsonl"
# Labels are named in the instruction while they are this few, and short.
NAMED_LABELS, LABEL_CHARACTERS = 100, 2000


def instruction_for(task: Task, answer: str) -> str:
    """Return the instruction that the base gets; `answer` is an expected one, for its form."""
    labels = ", ".join(task.labels)
    known = task.labels if len(labels) <= LABEL_CHARACTERS else ()
    named = f" one of: {labels}" if 0 < len(known) <= NAMED_LABELS else ""
    if task.field and not task.mixed:
        value = f' The value of "{task.field}" is{named}.' if named else ""
        return (
            "Answer with one JSON object of the same form as in the examples, and with nothing "
            f"else.{value}"
        )
    if named and not task.mixed:
        return f"Answer with{named}. Write nothing else."
    if task.metric == "number":
        return "End your answer with the final number, as in the examples."
    if task.metric == "tool_calls":
        return "Call tools in exactly the form of the examples, and write nothing else."
    if answer.lstrip().startswith("{") and not task.mixed:
        return "Answer with one JSON object of the same form as in the examples, and nothing else."
    return "Answer in the form, length and style of the examples."


def tokens_of(row: Row) -> int:
    """Return the tokens of a rendered row; those of a row that was not counted are estimated."""
    return row.n_tokens or sum(tokens_at_most(turn["content"]) for turn in row.messages)


def choose_shots(rows: Sequence[Row], count: int, room: int, seed: int) -> list[Row]:
    """Choose training rows as examples: different labels, and no more than `room` tokens."""
    chosen: list[Row] = []
    for row in spread(rows, 8 * count, seed):
        if tokens_of(row) <= room and len(chosen) < count:
            chosen.append(row)
            room -= tokens_of(row)
    return chosen


def fair_prompt(row: Row, instruction: str, shots: Sequence[Row]) -> list[Message]:
    """Return a prompt with an instruction and examples before the row's own turns.

    The instruction follows the system turn, or begins the first user turn: some templates have no
    place for a system turn.
    """
    system = [turn for turn in row.prompt if turn["role"] == "system"]
    turns = [turn for shot in shots for turn in shot.messages if turn["role"] != "system"]
    turns += [turn for turn in row.prompt if turn["role"] != "system"]
    if system:
        text = f"{system[0]['content']}\n\n{instruction}"
        return [{"role": "system", "content": text}, *turns]
    first = {**turns[0], "content": f"{instruction}\n\n{turns[0]['content']}"}
    return [first, *turns[1:]]


def fitting_shots(row: Row, shots: Sequence[Row], room: int) -> Sequence[Row] | None:
    """Return as many of the first examples as fit next to a row into `room` tokens.

    None if not even the instruction fits.
    """
    left = room - tokens_of(row)
    fitting = [n for n in range(len(shots) + 1) if sum(map(tokens_of, shots[:n])) <= left]
    return shots[: fitting[-1]] if fitting else None


def fair_prompts(
    ctx: StepContext, task: Task, rows: Sequence[Row], train: Sequence[Row]
) -> tuple[list[list[Message]], str, list[Row], int]:
    """Return the prompts of the base at its best, their instruction and examples.

    Last comes how many rows have no room for all examples.
    """
    settings, seed = ctx.config.evaluation, ctx.config.training.seed
    instruction = instruction_for(task, rows[0].answer)
    # What a request has left next to the instruction and the answer.
    room = (
        ctx.config.deployment.context_tokens - answer_limit(ctx.run) - tokens_at_most(instruction)
    )
    # Rows longer than most get fewer examples, so that one long row does not take them from all.
    usual = int(statistics.quantiles(map(tokens_of, rows), n=10)[-1]) if len(rows) > 1 else 0
    shots = choose_shots(train, settings.fair_base_shots, room - usual, seed)
    fitting = [fitting_shots(row, shots, room) for row in rows]
    prompts = [
        row.prompt if kept is None else fair_prompt(row, instruction, kept)
        for row, kept in zip(rows, fitting, strict=True)
    ]
    fewer = sum(kept is None or len(kept) < len(shots) for kept in fitting)
    return prompts, instruction, shots, fewer


def fair_base(
    ctx: StepContext, tuned: Judged, rows: Sequence[Row], train: Sequence[Row], plain: Sequence[str]
) -> tuple[dict[str, Sequence[str]], list[Measurement]]:
    """Ask the base with an instruction and examples; return both forms of its answers by name."""
    prompts, instruction, shots, fewer = fair_prompts(ctx, tuned.task, rows, train)
    limits, model = [answer_limit(ctx.run)] * len(rows), untuned(ctx)
    answers, _ = ask_kept(ctx, model, prompts, limits, "base model with examples")
    with (ctx.out / ANSWERS).open("w", encoding="utf-8") as out:
        for row, answer in zip(rows, answers, strict=True):
            entry = {"row_id": row.row_id, "expected": row.answer, "base": answer}
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    examples = [row.row_id for row in shots]
    ctx.write_json("fair_base.json", {"instruction": instruction, "examples": examples})
    # Not all rows had room for all examples.
    with_examples = f"an instruction and {'up to ' if fewer else ''}{len(shots)} examples"
    return {"its answer found in prose": plain, with_examples: answers}, [
        measure("fair_base_examples", len(shots), "rows"),
        measure("fair_base_rows_with_fewer_examples", fewer, "rows"),
        *judge_interrupted(ctx, "fair_base", model, prompts=prompts, answers=answers, tuned=tuned),
    ]


def decide(
    ctx: StepContext,
    rows: Sequence[Row],
    train: Sequence[Row],
    base: Judged,
    judged: Sequence[Judged],
) -> Finding:
    """Compare the candidate with all it must beat, and write the tables.

    Args:
        judged: the candidate's answers by the metric, then by each other part.
    """
    tuned, *parts = judged
    forms, of_forms = fair_base(ctx, tuned, rows, train, base.answers)
    learned = [turn for row in train for turn in turns_of(row)]
    trivial = against_trivial(ctx, tuned, rows, learned)
    main, claims = judge_metric(ctx, base, tuned, forms, trivial)
    found = [main]
    for part in parts:
        constant = [constant_answer(part.task, learned, ctx.config.training.seed)] * len(rows)
        of_part, more = judge_part(ctx, part, forms, constant)
        found.append(of_part)
        claims += more
    ctx.write_json("wrong_rows.json", wrong_rows(rows, tuned))
    if tuned.wanted:
        ctx.write_json("confusion.json", {"base": confusion(base), "tuned": confusion(tuned)})
    needed, graded = more_rows(claims), parts or tuned.task.graded or tuned.task.has_labels
    return Finding(
        [
            measure("metric", tuned.task.name, ""),
            measure("metric_chosen_because", tuned.task.why, ""),
            *(measured for each in found for measured in each.measurements),
            *([measure("more_rows_needed", needed, "rows")] if needed is not None else []),
            *of_forms,
            *label_measurements("base", base),
            *label_measurements("tuned", tuned),
            *([measure("bootstrap_seed", SEED, "seed")] if graded else []),
        ],
        "; ".join(each.sentence for each in found) + undecided_sentence(claims),
    )


def judge_metric(
    ctx: StepContext,
    base: Judged,
    tuned: Judged,
    forms: Mapping[str, Sequence[str]],
    trivial: tuple[Claim, Claim, Claim],
) -> tuple[Finding, list[Claim]]:
    """Compare the metric with the base, trivial answers and the floor; return the claims too."""
    settings, gained = ctx.config.evaluation, compare(base, tuned)
    gain = Claim("gain", "better than the base", gained.difference, tuned, settings.min_gain)
    form, of_form, fair = hardest_form(forms, tuned, settings.min_gain)
    constant, copied, nearest = trivial
    claims, metric = [gain, fair, constant, copied], stated("tuned_metric", tuned.interval)
    if (floor := settings.min_metric) is not None:
        about = f"at {floor:g} or above"
        claims.append(Claim("tuned_metric", about, tuned.interval, tuned, floor, ">="))
        metric = claims[-1].measurements()
    lost = nearest.estimate.upper < nearest.limit and ctx.config.profile == "production"
    test, right = ("sign_test_p", "better") if tuned.task.graded else ("mcnemar_p", "right")
    smallest = gain.limit + z_shown(tuned.tail) * gain.estimate.error
    compared = "is more than" if gain.shown else "must be more than"
    doubt = " (which chance could explain)" if nearest.rows_needed is not None else ""
    asked = f"{len(tuned.scores)} hold-out rows"
    counting = "" if gain.rows == len(tuned.scores) else f" that count as {gain.rows}"
    return Finding(
        [
            *stated("base_metric", base.interval),
            *metric,
            measure("min_metric", floor, "share"),
            *gain.measurements(),
            measure(test, round(gained.p_value, 6), "p"),
            measure(f"only_base_{right}", gained.only_first, "rows"),
            measure(f"only_tuned_{right}", gained.only_second, "rows"),
            measure("smallest_gain_shown_at_80_percent", round(smallest, 4), "share"),
            measure("fair_base_form", form, ""),
            measure("fair_base_metric", round(of_form.interval.value, 4), "share"),
            *fair.measurements(),
            *constant.measurements(),
            *copied.measurements(),
            *nearest.measurements("fail" if lost else "warn"),
        ],
        f"{tuned.task.name} on {asked}{counting}: tuned {tuned.interval.text()}, base "
        f"{base.interval.text()}; the lower end of the gain, {gain.estimate.lower:.3f}, {compared} "
        f"{gain.limit:g}; over the base with {form} {fair.estimate.value:+.3f}, over a constant "
        f"answer {constant.estimate.value:+.3f}, over the nearest training row "
        f"{nearest.estimate.value:+.3f}{doubt}",
    ), claims


def hardest_form(
    forms: Mapping[str, Sequence[str]], tuned: Judged, limit: float
) -> tuple[str, Judged, Claim]:
    """Return the form of the base over which the candidate's gain is the least certain."""
    found = []
    for name, answers in forms.items():
        base = tuned.other(answers, anywhere=True)
        about, difference = f"better than the base with {name}", compare(base, tuned).difference
        found.append((name, base, Claim("gain_over_fair_base", about, difference, tuned, limit)))
    return min(found, key=lambda each: each[2].estimate.lower)


def judge_part(
    ctx: StepContext, tuned: Judged, forms: Mapping[str, Sequence[str]], constant: Sequence[str]
) -> tuple[Finding, list[Claim]]:
    """Compare a part of the answers with the base at its best and one constant answer."""
    task, margin = tuned.task, ctx.config.evaluation.against_released.text_margin
    name, _, fair = hardest_form(forms, tuned, -margin)
    over = compare(tuned.other(constant), tuned).difference
    no_worse = f"no worse in its {task.name} than the base with {name}"
    better = f"better in its {task.name} than one constant answer"
    fair = replace(fair, name=f"{task.prefix}{fair.name}", about=no_worse, rule=">=")
    constant_claim = Claim(f"{task.prefix}gain_over_constant", better, over, tuned, 0.0)
    to_show = [] if tuned.alike else [constant_claim]
    to_show += [fair] if task.free_text and not tuned.alike else []
    measured = [
        claim.measurements() if claim in to_show else not_shown_worse(claim, margin)
        for claim in (fair, constant_claim)
    ]
    return Finding(
        [*stated(f"{task.prefix}tuned_metric", tuned.interval), *chain(*measured)],
        f"{task.name} {tuned.interval.text()}, over the base with {name} "
        f"{fair.estimate.value:+.3f}, over one constant answer {over.value:+.3f}",
    ), to_show


def not_shown_worse(claim: Claim, margin: float) -> list[Measurement]:
    """State an estimate that may not be shown to be below 0 by more than a margin."""
    value, lower, upper = stated(claim.name, claim.estimate)
    return [value, lower, measure(upper.name, upper.value, "share", ">=", -margin)]


def judge_coverage(config: PipelineConfig, judged: Sequence[Judged], few: Sequence[str]) -> Finding:
    """State what of the answers nothing judges (`few`), and what their likeness alone does.

    Code that is like the expected one may do the opposite: production asks for more.
    """
    texts = [each for each in judged if each.task.free_text]
    written = [[each.task.text(text) for text in each.expected] for each in texts]
    code = sum(2 * sum(map(is_code, each)) > len(each) for each in written)
    checked = config.evaluation.review or config.data.answer_schema is not None
    said = f"{', '.join(few)}: too few rows have it to be judged; " if few else ""
    if texts:
        said += "of texts only the closeness to one expected text was judged; "
    if code:
        said += "where they are code, name data.answer_schema or ask for a review; "
    found = [("fields_not_judged", len(few)), ("code_judged_by_closeness", 0 if checked else code)]
    ruled: tuple[Rule, int] | tuple[()] = ("<=", 0) if config.profile == "production" else ()
    breach: Breach = "inconclusive"
    return Finding([measure(n, c, "parts", *ruled, on_breach=breach) for n, c in found], said)


def against_trivial(
    ctx: StepContext, tuned: Judged, rows: Sequence[Row], train: Sequence[Row]
) -> tuple[Claim, Claim, Claim]:
    """Compare the candidate with a constant answer, the question, and nearest training rows."""
    seed, limit = ctx.config.training.seed, ctx.config.evaluation.min_gain_over_trivial

    def claim(name: str, about: str, texts: Sequence[str]) -> Claim:
        difference = compare(tuned.other(texts), tuned).difference
        return Claim(name, f"better than {about}", difference, tuned, limit)

    constant = [constant_answer(tuned.task, train, seed)] * len(rows)
    nearest = nearest_answers(train, rows, seed)
    return (
        claim("gain_over_constant", "one constant answer", constant),
        claim("gain_over_question", "the question itself", [r.prompt[-1]["content"] for r in rows]),
        claim("gain_over_nearest_row", "the answers of the nearest training rows", nearest),
    )
