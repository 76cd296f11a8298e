"""Parse answers that are JSON strictly, and write them back in their own style."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneline.config import DataConfig
from tuneline.config.data import AUTO
from tuneline.data.conversations.reading import Outcome
from tuneline.data.conversations.turn_checks import check_unicode
from tuneline.data.sources.records import parse_json
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError

_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"separators": separators, "ensure_ascii": ensure_ascii}
    for separators in ((",", ":"), (", ", ": "))
    for ensure_ascii in (False, True)
)


def parse_answer(text: str) -> Any:
    """Return an answer's JSON value, None if it is not JSON."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return None


def answer_object(text: str) -> dict[str, Any] | None:
    """Return an answer's JSON object, None if it is anything else."""
    if not text.lstrip().startswith("{"):
        return None
    value = parse_answer(text)
    return value if isinstance(value, dict) else None


def dump_like(value: Any, original: str) -> str:
    """Write a JSON value in the style of the original text."""
    parsed = parse_answer(original)
    style = next((s for s in _STYLES if json.dumps(parsed, **s) == original), _STYLES[2])
    return json.dumps(value, **style)


def map_texts(message: Message, change: Callable[[str], str], label_field: str | None) -> Message:
    """Apply a change to the texts of a turn; JSON answers stay JSON, labels stay as they are.

    The texts of a JSON answer are its strings and numbers; a number stays one where it can.
    """
    content = message["content"]
    value = answer_object(content) if message["role"] == "assistant" else None
    if value is None:
        return {"role": message["role"], "content": change(content)}
    changed = _map_json(value, change, label_field)
    if changed == value:
        return message
    return {"role": message["role"], "content": dump_like(changed, content)}


def _map_json(value: Any, change: Callable[[str], str], label_field: str | None) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key: entry if key == label_field else _map_json(entry, change, label_field)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_map_json(entry, change, label_field) for entry in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        changed = change(str(value))
        return value if changed == str(value) else _number_of(changed)
    return value


def _number_of(text: str) -> Any:
    """Return the number that a text is in JSON, or the text."""
    number = parse_answer(text) if text[:1].isdecimal() or text[:1] == "-" else None
    return text if number is None or str(number) != text else number


# Above this share of JSON objects, answers of another kind are faults.
JSON_MAJORITY = 0.5


# A class: a field of nearly all objects with texts of few words, each on five rows in the mean.
CLASS_SHARE, CLASS_WORDS, CLASS_ROWS, CLASS_KINDS = 0.9, 3, 5, 200
# Fields that are counted; answers that name more have no fixed ones.
_MOST_FIELDS = 200


@dataclass
class AnswerCounts:
    """How many answers there are, JSON objects among them, and those with each field.

    `short` are the rows on which a field has a text of few words, `kinds` its different texts.
    """

    answers: int = 0
    objects: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    short: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, outcomes: Iterable[Outcome], config: DataConfig) -> None:
        """Count the answers of rows; those whose JSON hides broken text take a reason."""
        for outcome, value in _parsed(outcomes):
            if value is not None and "\\u" in outcome.messages[-1]["content"]:
                decoded = json.dumps(value, ensure_ascii=False)
                outcome.reason = check_unicode([{"role": "assistant", "content": decoded}])
            if outcome.reason is not None:
                continue
            self.answers += 1
            if isinstance(value, dict):
                self.objects += 1
                self._count(value, config.label_field)

    def _count(self, value: Mapping[str, Any], named: str | None) -> None:
        for name, entry in value.items():
            if name == named or name in self.fields or len(self.fields) < _MOST_FIELDS:
                self.fields[name] += 1
                if isinstance(entry, str) and 0 < len(entry.split()) <= CLASS_WORDS:
                    self.short[name] += 1
                    if len(self.kinds[name]) <= CLASS_KINDS:
                        self.kinds[name].add(entry)

    def label_field(self, config: DataConfig) -> str | None:
        """Return the field of the class, as configured or as found.

        UserError if no answer has the one that is configured.
        """
        name = config.label_field
        if name == AUTO:
            if config.csv and config.csv.label in self.fields:
                return config.csv.label
            return self.class_of(CLASS_SHARE)
        if name is not None and self.answers and name not in self.fields:
            common = ", ".join(f"{name!r} ({n})" for name, n in self.fields.most_common(5))
            there = f"; they have {common}" if common else ""
            raise UserError(
                f"data.label_field is {name!r}, which none of {self.answers} answers has (of these "
                f"{self.objects} are JSON objects{there}); name a field that is there, or null for "
                "no class"
            )
        return name

    def class_of(self, share: float) -> str | None:
        """Return the one field that is a class on more than a share of the objects."""
        fewest = max(share * self.objects, JSON_MAJORITY * self.answers)
        found = [
            name
            for name, rows in self.short.items()
            if rows > fewest and 1 < len(self.kinds[name]) <= min(CLASS_KINDS, rows / CLASS_ROWS)
        ]
        return found[0] if len(found) == 1 else None


def check_answers(
    outcomes: Sequence[Outcome], config: DataConfig, counts: AnswerCounts | None = None
) -> None:
    """Check answers by the schema, or by the form of most answers; take their labels.

    Without a schema, answers must be JSON objects when most of the dataset's are, and have the
    label field when most of those objects have it. `counts` are those of all rows; None if
    `outcomes` are all.
    """
    if counts is None:
        counts = AnswerCounts()
        counts.add(outcomes, config)
    name = counts.label_field(config)
    pairs = list(_parsed(outcomes))
    if config.answer_schema is not None:
        _check_schema(pairs, config.answer_schema)
    elif name is None or counts.objects <= JSON_MAJORITY * counts.answers:
        return
    else:
        for outcome, value in pairs:
            if not isinstance(value, dict):
                outcome.reason = "answer_not_json: most answers are JSON objects, this one is not"
    if name is None or counts.fields[name] <= JSON_MAJORITY * counts.objects:
        return
    for outcome, value in pairs:
        label = value.get(name) if isinstance(value, dict) else None
        if label is not None and not isinstance(label, dict | list) and str(label).strip():
            # A row that breaks the schema has a class too: its class loses the row.
            outcome.label = str(label) if outcome.label is None else outcome.label
        elif outcome.reason is None:
            outcome.reason = f"answer_without_label: the answer has no text in {name!r}"


def _parsed(outcomes: Iterable[Outcome]) -> Iterator[tuple[Outcome, Any]]:
    """Yield the rows that are kept and end in a text, with the JSON value of that."""
    for outcome in outcomes:
        conversation = outcome.conversation
        if outcome.reason is None and not (conversation and conversation.ends_in_call):
            yield outcome, parse_answer(outcome.messages[-1]["content"])


def _check_schema(pairs: Iterable[tuple[Outcome, Any]], schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"data.answer_schema is not a JSON Schema: {error.message}") from None
    validator = Draft202012Validator(schema)
    for outcome, value in pairs:
        if value is None:
            outcome.reason = "answer_not_json: data.answer_schema asks for JSON"
            continue
        fault = next(validator.iter_errors(value), None)
        if fault is not None:
            where = "/".join(map(str, fault.absolute_path)) or "its top level"
            outcome.reason = f"answer_schema: at {where}, {fault.validator} is not met"
