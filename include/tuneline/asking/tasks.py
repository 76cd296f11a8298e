"""The metric of a task, the score of an answer, and the scores of a model, alone and compared.

Answers are judged strictly: JSON wrapped in prose would break its caller, so it counts as wrong;
how often is reported, and the base is also judged without it. Tasks of their own judge what the
metric does not see (`further_tasks`): the other fields of a JSON answer, the names of its fields,
tool calls, and the texts of rows without a call. A share has Wilson's interval, a difference of
shares that of Agresti and Min, one against a margin Tango's. Graded scores (chrF, ROUGE-L) and
macro-F1 take the paired bootstrap. Rows of one group count once, with their mean score (an analysis
by cluster, as in Donner and Klar, *Design and Analysis of Cluster Randomization Trials*, 2000).
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from functools import cached_property
from itertools import accumulate, compress
from typing import TYPE_CHECKING, Any, Literal

from tuneline.asking.answer_values import (
    canonical,
    chrf,
    final_number,
    find_object,
    rouge_l,
    same_number,
    several_numbers,
    states_number,
    tool_calls,
    words_of,
)
from tuneline.asking.scorer import scores_by
from tuneline.config import PipelineConfig
from tuneline.config.evaluation import Metric
from tuneline.data.conversations.answers import JSON_MAJORITY, answer_object
from tuneline.errors import UserError
from tuneline.serving.client import Messages
from tuneline.statistics import (
    TAIL,
    Interval,
    NonInferiority,
    Paired,
    agresti_min,
    bootstrap_limits,
    macro_f1,
    mean_difference,
    mean_interval,
    non_inferiority,
    sign_test,
    wilson,
    z_of,
    z_shown,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tuneline.statistics import Statistic

# The rows that a task judges: all, those whose expected answer has the field, calls tools or is of
# the metric's kind, and the texts that are of no kind.
Part = Literal["", "field", "calls", "kind", "texts"]
# Far below any rounding that an answer states on purpose, far above that of a float.
TOLERANCE = 1e-4
_TEXTS = ("chrf", "rouge_l")
_NAMES = {
    "exact": "exact match",
    "number": "numeric match",
    "tool_calls": "tool-call match",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "fields": "share of fields right",
    "field_names": "set of fields",
    "scorer": "score of evaluation.scorer",
}
_FENCE = re.compile(r"```\w*+\n?(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """The rule by which an answer is scored.

    Attributes:
        metric: see `evaluation.metric`; `number` compares the one that an answer ends in, `fields`
            takes the share of the expected fields whose values are equal, `field_names` compares
            which fields an answer has.
        field: the field of a JSON answer that is compared; empty for the whole answer.
        fields: those of `fields`.
        part: the rows that it judges, where it is not the metric.
        unlike: the tasks whose rows are no texts.
        mixed: True if earlier turns are of another kind; there any answer of another kind is right.
        tolerance: the largest relative difference of `number`.
        labels: all labels as they are expected, where there are few.
        command: that of `scorer`.
    """

    metric: Metric | Literal["fields", "field_names", "scorer"]
    field: str = ""
    fields: tuple[str, ...] = ()
    part: Part = ""
    unlike: tuple[Task, ...] = ()
    mixed: bool = False
    tolerance: float = TOLERANCE
    why: str = attribute(default="", compare=False)
    labels: tuple[str, ...] = attribute(default=(), compare=False)
    command: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The metric's name as it stands in evidence."""
        if self.metric == "json_field":
            return f"{self.field} accuracy"
        if self.metric == "macro_f1":
            return f"{self.field} macro-F1".strip()
        return f"{self.field} {_NAMES[self.metric]}".strip()

    @property
    def prefix(self) -> str:
        """The prefix of the names of its measurements; empty for the metric."""
        kind = "numbers" if self.metric == "number" else "labels"
        names = {"field": self.field, "calls": "tool_calls", "kind": kind}
        name = "field_names" if self.metric == "field_names" else names.get(self.part, self.part)
        return f"{name}." if name else ""

    @property
    def free_text(self) -> bool:
        """True if texts are compared by their likeness."""
        return self.metric in _TEXTS

    @property
    def graded(self) -> bool:
        """True if an answer can be partly right."""
        return self.free_text or self.metric in ("fields", "scorer")

    def judges(self, expected: str) -> bool:
        """Return True if rows with this expected answer are judged."""
        if self.part == "texts":
            return not any(task.concerns(expected) for task in self.unlike)
        return not (self.part or self.metric == "field_names") or self.concerns(expected)

    def concerns(self, text: str, *, strictly: bool = False) -> bool:
        """Return True for an answer of the metric's kind; `strictly`: a number stands alone."""
        if self.metric == "tool_calls":
            return bool(tool_calls(text))
        if self.field:
            return self.field in (answer_object(text) or {})
        if self.metric in ("fields", "field_names"):
            return answer_object(text) is not None
        if self.metric == "number":
            return states_number(text) if strictly else final_number(text) is not None
        return not self.labels or _whole(text) in self.labels

    @property
    def has_labels(self) -> bool:
        """True if an answer names one label of a few."""
        return self.metric in ("json_field", "macro_f1") or bool(self.labels)

    def score(self, answer: str, expected: str, *, anywhere: bool = False) -> float:
        """Score an answer from 0 to 1; `anywhere`: also where it stands in prose or a fence."""
        if self.mixed and not self.concerns(expected):
            return float(not self.concerns(answer, strictly=True))
        if self.metric == "fields":
            return self._share_of_fields(answer, expected, anywhere=anywhere)
        if self.free_text:
            compare = chrf if self.metric == "chrf" else rouge_l
            wanted = [] if self.field else tool_calls(expected)
            if wanted or (not self.field and tool_calls(answer)):
                # A call is no text: where none was due it is wrong.
                return float(tool_calls(answer) == wanted)
            answer, expected = self.text(answer, anywhere=anywhere), self.text(expected)
            strict = compare(answer, expected)
            return max(strict, compare(_unfenced(answer), expected)) if anywhere else strict
        return float(self._right(answer, expected, anywhere=anywhere))

    def label(self, answer: str, *, anywhere: bool = False) -> str | None:
        """Return the label that an answer names, None for none; `anywhere`: in prose too."""
        if self.field:
            value = _object(answer, anywhere=anywhere)
            if value is None or self.field not in value:
                return None
            found = value[self.field]
            return found if isinstance(found, str) else canonical(found)
        if anywhere and self.labels:
            return self._only_label_in(answer)
        return None if self.mixed and not self.concerns(answer) else _whole(answer)

    def text(self, answer: str, *, anywhere: bool = False) -> str:
        """Return the answer, or the text of the field, empty if it has none."""
        if not self.field:
            return answer
        found = (_object(answer, anywhere=anywhere) or {}).get(self.field, "")
        return found if isinstance(found, str) else canonical(found)

    def value(self, expected: str) -> str:
        """Return the same text for expected answers with the same value."""
        value = answer_object(expected) or {}
        if self.metric == "field_names":
            return canonical(sorted(value))
        return canonical(value.get(self.field)) if self.field else _whole(expected)

    def _share_of_fields(self, answer: str, expected: str, *, anywhere: bool) -> float:
        got, want = _object(answer, anywhere=anywhere), answer_object(expected) or {}
        names = [name for name in self.fields if name in want] or list(want)
        right = sum(_same_value(name, got, want) for name in names)
        return right / len(names) if names else float(_whole(answer) == _whole(expected))

    def _right(self, answer: str, expected: str, *, anywhere: bool) -> bool:
        if self.metric == "number":
            return same_number(answer, expected, self.tolerance)
        if self.metric == "tool_calls":
            # Where no call is expected, an answer without one is right, whatever it says.
            return tool_calls(answer) == tool_calls(expected)
        if self.field:
            got = _object(answer, anywhere=anywhere)
            return _same_value(self.field, got, answer_object(expected))
        if self.metric == "field_names":
            got = _object(answer, anywhere=anywhere)
            return got is not None and got.keys() == (answer_object(expected) or {}).keys()
        if _whole(answer) == _whole(expected):
            return True
        return anywhere and self._found(answer, expected)

    def _found(self, answer: str, expected: str) -> bool:
        if self.labels:
            return self._only_label_in(answer) == _whole(expected)
        value = find_object(answer) if answer_object(expected) is not None else None
        if value is not None:
            return canonical(value) == _whole(expected)
        return _whole(_unfenced(answer)) == _whole(expected)

    def _only_label_in(self, text: str) -> str | None:
        """Return the one label whose words stand in a text; None if there is none or several."""
        lowered = text.lower()
        found = [
            label
            for label in self.labels
            if re.search(rf"(?<!\w){re.escape(label.lower())}(?!\w)", lowered)
        ]
        # "not a refund" would also name "refund": the longer label holds the shorter one.
        whole = [a for a in found if not any(a != b and a.lower() in b.lower() for b in found)]
        return whole[0] if len(whole) == 1 else None


def _object(text: str, *, anywhere: bool) -> dict[str, Any] | None:
    """Return the JSON object of an answer; `anywhere`: the first one in prose, too."""
    return find_object(text) if anywhere else answer_object(text)


def _same_value(name: str, got: Mapping[str, Any] | None, want: Mapping[str, Any] | None) -> bool:
    if got is None or want is None or name not in got or name not in want:
        return False
    return canonical(got[name]) == canonical(want[name])


def _whole(text: str) -> str:
    """Return the same text for answers that are equal: JSON by value, text up to white space."""
    value = answer_object(text)
    return " ".join(text.split()) if value is None else canonical(value)


def _unfenced(text: str) -> str:
    fenced = _FENCE.search(text)
    return fenced.group(1) if fenced else text


# Whole answers that repeat count as labels: so few kinds, as a share of the rows and at most.
CLOSED_SHARE, CLOSED_KINDS = 0.5, 200
# Longer answers can be written in many ways, so that equality says little of them.
SHORT_WORDS = 3


def task_of(config: PipelineConfig, expected: Sequence[str], earlier: Sequence[str] = ()) -> Task:
    """Choose the metric of a run; see `choose_task`."""
    settings = config.evaluation
    if settings.metric == "scorer":
        command = tuple(settings.scorer or ())
        return Task("scorer", command=command, why=f"evaluation.scorer is {command[0]}")
    field, tolerance = config.data.label_field, settings.numeric_tolerance
    return choose_task(settings.metric, field, expected, tolerance, earlier)


def choose_task(
    metric: Literal["auto"] | Metric,
    field: str | None,
    expected: Sequence[str],
    tolerance: float = TOLERANCE,
    earlier: Sequence[str] = (),
) -> Task:
    """Choose the metric by the configuration and the expected answers.

    Those of earlier turns decide only where the last ones are texts of no kind of their own.

    `auto` takes, in this order: the label field, if every expected answer is JSON that has it; tool
    calls, if half of the answers make some; the share of equal fields, if most answers are JSON
    with short ones; numbers, if every answer is one or names one behind `####`; equality, for
    answers that repeat or are short; chrF for the rest. UserError if the answers do not have what
    the configured metric compares.
    """
    chosen = _auto(field, expected) if metric == "auto" else _configured(metric, field, expected)
    task = replace(chosen, tolerance=tolerance, labels=_labels(chosen, expected))
    if metric == "auto" and earlier and task.metric in ("exact", "chrf") and not task.labels:
        return choose_task(metric, field, [*earlier, *expected], tolerance)
    mixed = task.metric != "tool_calls" and not all(map(task.concerns, earlier))
    return replace(task, mixed=mixed)


def _auto(field: str | None, expected: Sequence[str]) -> Task:
    if field and expected and not _lacking(field, expected):
        return Task("json_field", field, why=f"every expected answer is JSON with {field!r}")
    count = len(expected)
    calling = sum(bool(tool_calls(text)) for text in expected)
    if expected and calling >= count / 2:
        return Task("tool_calls", why=f"{calling} of {count} expected answers call a tool")
    if short := _short_fields(_objects(expected)):
        return Task("fields", fields=short, why="most expected answers are JSON with short fields")
    if expected and all(map(states_number, expected)):
        return Task("number", why="every expected answer is a number or ends in one")
    return _by_length(expected)


def _by_length(expected: Sequence[str]) -> Task:
    count, kinds = len(expected), len(_kinds(expected))
    if kinds <= min(CLOSED_SHARE * count, CLOSED_KINDS):
        return Task("exact", why=f"{count} expected answers have {kinds} different texts")
    words = statistics.median(len(words_of(text)) for text in expected) if expected else 0
    if words <= SHORT_WORDS:
        return Task("exact", why="most expected answers have at most three words")
    return Task("chrf", why=f"the expected answers are free text of {words:g} words (median)")


def _configured(metric: Metric, field: str | None, expected: Sequence[str]) -> Task:
    why = f"evaluation.metric is {metric}"
    if metric == "json_field" and not field:
        raise UserError("evaluation.metric is json_field, but data.label_field is not set; name it")
    if metric == "json_field" or (metric == "macro_f1" and field):
        assert field is not None
        lacking = _lacking(field, expected)
        if lacking:
            raise UserError(
                f"{why}, but {len(lacking)} of {len(expected)} expected answers have no field "
                f"{field!r} (the first: {lacking[0][:60]!r}); set data.label_field or "
                "evaluation.metric: exact"
            )
        return Task(metric, field, why=why)
    if metric == "number":
        without = [t for t in expected if final_number(t) is None or several_numbers(t)]
        if without:
            raise UserError(
                f"{why}, but {len(without)} of {len(expected)} expected answers hold no one number "
                f"(the first: {without[0][:60]!r}); choose another evaluation.metric"
            )
    if metric == "tool_calls" and not any(map(tool_calls, expected)):
        raise UserError(
            f"{why}, but none of the {len(expected)} expected answers calls a tool; choose "
            "another evaluation.metric"
        )
    return Task(metric, why=why)


# A value in more than this share of the answers: what differs from it are too few rows to be better
# on.
MOST_ALIKE = 0.5
# Rows without which nothing is said of a part of the answers.
FEWEST = 10


def further_tasks(
    task: Task, expected: Sequence[str], earlier: Sequence[str] = ()
) -> tuple[list[Task], list[str]]:
    """Return a task for all that the metric does not judge, and what too few rows have.

    Each field of JSON answers is judged on the rows that have it: texts, of more than `SHORT_WORDS`
    words (median), by chrF, other values by equality; which fields an answer has on all. Where
    some answers call tools, or earlier turns are of another kind, each kind and the texts are
    judged apart. A team's own metric has judged all.
    """
    found: list[Task] = []
    if task.metric == "scorer":
        return [], []
    every, calls = [*earlier, *expected], Task("tool_calls", part="calls")
    if objects := [] if task.metric in ("exact", "tool_calls") else _objects(expected):
        objects += [value for text in earlier if (value := answer_object(text)) is not None]
        short = _short_fields(objects)
        found = [
            Task("json_field" if name in short else "chrf", name, part="field")
            for name in _names(objects)
            if name != task.field or task.mixed
        ]
        found.append(Task("field_names"))
    elif task.mixed:
        found.append(replace(task, part="kind", mixed=False))
    unlike = found[-1:]
    if 0 < sum(map(calls.judges, every)) < len(every):
        found.append(calls)
        unlike.append(calls)
    texts = Task("chrf", part="texts", unlike=tuple(unlike))
    if (earlier or calls in unlike) and unlike and any(map(texts.judges, every)):
        found.append(texts)
    rows = [sum(map(each.judges, every)) for each in found]
    few = [each.prefix[:-1] for each, count in zip(found, rows, strict=True) if count < FEWEST]
    return list(compress(found, (count >= FEWEST for count in rows))), few


def _objects(expected: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of answers; none unless most answers are one."""
    objects = [value for text in expected if (value := answer_object(text)) is not None]
    return objects if len(objects) > JSON_MAJORITY * len(expected) else []


def _names(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for value in objects for name in value))


def _short_fields(objects: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the fields that are no texts."""
    sizes: dict[str, list[int]] = {}
    for name, value in (pair for each in objects for pair in each.items()):
        sizes.setdefault(name, []).append(len(words_of(value)) if isinstance(value, str) else 0)
    return tuple(name for name, words in sizes.items() if statistics.median(words) <= SHORT_WORDS)


def _lacking(field: str, expected: Sequence[str]) -> list[str]:
    return [text for text in expected if field not in (answer_object(text) or {})]


def _kinds(expected: Sequence[str]) -> list[str]:
    return sorted({" ".join(text.split()) for text in expected})


def _labels(task: Task, expected: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that the answers name, where each is one of a few."""
    if task.field:
        named = {task.label(text) for text in expected}
        return tuple(sorted(name for name in named if name is not None))
    if task.metric not in ("exact", "macro_f1"):
        return ()
    if any(answer_object(text) is not None for text in expected):
        return ()
    kinds = _kinds(expected)
    few = len(kinds) <= min(CLOSED_SHARE * len(expected), CLOSED_KINDS)
    return tuple(kinds) if few or task.metric == "macro_f1" else ()


@dataclass(frozen=True)
class Judged:
    """The answers of one model, judged: a score from 0 to 1 for each row.

    Attributes:
        wanted: the expected labels, and `named` those answered (None for none); empty if the task
            has no labels.
        groups: the number of each row's group, of which all rows count as one; empty if each row
            counts alone.
        at: the place of each row among those that were asked.
        questions: the prompt of each row, where a team's own metric judges.
        tail: error of each end of an interval.
    """

    task: Task
    answers: tuple[str, ...]
    expected: tuple[str, ...]
    scores: tuple[float, ...]
    wanted: tuple[str | None, ...] = ()
    named: tuple[str | None, ...] = ()
    groups: tuple[int, ...] = ()
    at: tuple[int, ...] = ()
    questions: tuple[Messages, ...] = ()
    tail: float = TAIL

    @cached_property
    def units(self) -> list[float]:
        """The mean score of each group."""
        found: dict[int, list[float]] = {}
        for group, score in zip(self.groups or range(len(self.scores)), self.scores, strict=True):
            found.setdefault(group, []).append(score)
        return [sum(scores) / len(scores) for scores in found.values()]

    @cached_property
    def alike(self) -> bool:
        """True if one value, such as a form letter, stands in most of the expected answers."""
        counts = Counter(map(self.task.value, self.expected))
        return max(counts.values(), default=0) > MOST_ALIKE * len(self.expected)

    @property
    def interval(self) -> Interval:
        """The metric with its interval."""
        if self.task.metric == "macro_f1":
            return self.macro_f1
        if self.task.graded:
            return mean_interval(self.units, self.tail)
        return wilson(sum(self.units), len(self.units), self.tail)

    @property
    def macro_f1(self) -> Interval:
        """The mean of the F1 of every expected label, with its interval."""
        units = self.units
        return self._widened(self._f1, wilson(sum(units), len(units), self.tail), 0.0)

    def other(self, answers: Sequence[str], *, anywhere: bool = False) -> Judged:
        """Judge another model by its answers to all rows that were asked."""
        given, asked = [answers[place] for place in self.at], self.questions
        expected, groups, tail = self.expected, self.groups, self.tail
        found = judge(self.task, given, expected, groups, tail, questions=asked, anywhere=anywhere)
        return replace(found, at=self.at)

    def rows(self, keep: Sequence[bool]) -> Judged:
        """Return the judgement of some rows alone, as if no others had been asked."""
        chosen, place = [keep[at] for at in self.at], list(accumulate(keep, initial=0))
        names = ("answers", "expected", "scores", "wanted", "named", "groups", "questions")
        kept: dict[str, Any] = {
            name: tuple(compress(getattr(self, name), chosen)) for name in names
        }
        return replace(self, **kept, at=tuple(place[at] for at in compress(self.at, chosen)))

    def _f1(self, weights: Any) -> NDArray[np.float64]:
        """Return the macro-F1 for each draw of groups; the rows of one share its weight."""
        import numpy as np

        groups = self.groups or range(len(self.scores))
        _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        return macro_f1((weights / sizes)[:, place], self.wanted, self.named)

    def _widened(self, statistic: Statistic, accuracy: Interval, least: float) -> Interval:
        """Return the bootstrap interval of a value, no narrower than that of the right labels.

        Rows that are all right have no spread to draw from.
        """
        import numpy as np

        count = len(self.units)
        value = float(statistic(np.ones((1, count), dtype=np.int64))[0])
        lower, upper, error = bootstrap_limits(count, statistic, self.tail)
        return Interval(
            value,
            max(least, min(lower, value - (accuracy.value - accuracy.lower))),
            min(1.0, max(upper, value + (accuracy.upper - accuracy.value))),
            max(error, accuracy.error),
        )


def judge(
    task: Task,
    answers: Sequence[str],
    expected: Sequence[str],
    groups: Sequence[int] = (),
    tail: float = TAIL,
    *,
    questions: Sequence[Messages] = (),
    anywhere: bool = False,
) -> Judged:
    """Judge a model's answers to the rows that a task judges; `anywhere`: those in prose too.

    `questions` are the prompts of all rows, which a team's own metric sees.
    """
    given = list(zip(answers, expected, strict=True))
    at = tuple(place for place, want in enumerate(expected) if task.judges(want))
    pairs = [given[place] for place in at]
    if task.metric == "scorer":
        asked = zip(questions, expected, answers, strict=True)
        scores = scores_by(task.command, list(asked))
    else:
        scores = tuple(task.score(got, want, anywhere=anywhere) for got, want in pairs)
    labelled = pairs if task.has_labels else []
    return Judged(
        task,
        tuple(got for got, _ in pairs),
        tuple(want for _, want in pairs),
        scores,
        wanted=tuple(task.label(want) for _, want in labelled),
        named=tuple(task.label(got, anywhere=anywhere) for got, _ in labelled),
        groups=tuple(groups[place] for place in at) if groups else (),
        at=at,
        questions=tuple(questions),
        tail=tail,
    )


def compare(first: Judged, second: Judged) -> Paired:
    """Return how much better the second model is than the first, on the same rows.

    The groups of rows on which it scores lower and higher are counted, and the p-value is that of
    the sign test on them.
    """
    a, b, tail = first.units, second.units, second.tail
    if second.task.graded:
        difference = mean_difference(a, b, tail)
    elif second.task.metric == "macro_f1":
        accuracy = _difference(a, b, tail)
        difference = second._widened(lambda w: second._f1(w) - first._f1(w), accuracy, -1.0)
    else:
        difference = _difference(a, b, tail)
    lower, higher = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    return Paired(difference, lower, higher, sign_test(higher, lower))


def _difference(first: Sequence[float], second: Sequence[float], tail: float) -> Interval:
    """Return the interval of a difference of shares; of a group in part right, a part counts."""
    changes = [b - a for a, b in zip(first, second, strict=True)]
    lost, gained = (sum(max(0.0, sign * change) for change in changes) for sign in (-1, 1))
    return agresti_min(lost, gained, len(changes), tail)


def not_worse(old: Judged, new: Judged, margin: float) -> NonInferiority:
    """Compare a new model with an old one on the same rows, against a margin of the metric."""
    a, b, tail = old.units, new.units, new.tail
    if not new.task.graded and new.task.metric != "macro_f1":
        return non_inferiority(a, b, margin, tail)
    found, rows = compare(old, new), len(a)
    if new.task.graded:
        spread = sum((y - x) ** 2 for x, y in zip(a, b, strict=True)) / rows
    else:
        spread = found.difference.error**2 * rows + found.difference.value**2
    # Models that never differ have an error of 1 over the rows (`mean_difference`).
    fewest, counts = math.ceil(z_of(tail) / margin), (found.only_second, found.only_first)
    return NonInferiority(found.difference, *counts, rows, margin, spread, fewest, tail)


def rows_needed(difference: Interval, rows: int, limit: float, tail: float = TAIL) -> int | None:
    """Return the rows that show a difference above a limit with a probability of 80 %.

    The models are taken to go on to differ as they did, on `rows`: the error shrinks with the root
    of the size. None if the difference is not above the limit.
    """
    distance = difference.value - limit
    if distance <= 0:
        return None
    variance = difference.error**2 * rows
    return max(rows + 1, math.ceil(variance * (z_shown(tail) / distance) ** 2))
