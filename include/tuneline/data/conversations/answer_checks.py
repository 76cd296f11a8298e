"""Check the answers of a dataset: JSON if most are, a schema if one is given, their labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.conversations.answers import parse_answer
from tuneline.data.conversations.outcomes import Outcome
from tuneline.data.conversations.turn_checks import check_unicode
from tuneline.errors import UserError

# Above this share of JSON objects, answers of another kind are faults.
JSON_MAJORITY = 0.5


def check_answers(outcomes: Sequence[Outcome], config: DataConfig) -> None:
    """Check answers by the schema, or by the form of most answers; take their labels.

    Without a schema, answers must be JSON objects when most of the dataset's are, and have the
    label field when most of those objects have it.
    """
    live = [
        outcome
        for outcome in outcomes
        if outcome.reason is None
        and not (outcome.conversation is not None and outcome.conversation.ends_in_call)
    ]
    parsed = [parse_answer(outcome.messages[-1]["content"]) for outcome in live]
    for outcome, value in zip(live, parsed, strict=True):
        if value is not None and "\\u" in outcome.messages[-1]["content"]:
            decoded = json.dumps(value, ensure_ascii=False)
            outcome.reason = check_unicode([{"role": "assistant", "content": decoded}])
    pairs = [(o, v) for o, v in zip(live, parsed, strict=True) if o.reason is None]
    live, parsed = [o for o, _ in pairs], [v for _, v in pairs]
    objects = [value for value in parsed if isinstance(value, dict)]
    name = config.label_field
    if config.answer_schema is not None:
        _check_schema(live, parsed, config.answer_schema)
    elif name is None or len(objects) <= JSON_MAJORITY * len(live):
        return
    else:
        for outcome, value in zip(live, parsed, strict=True):
            if not isinstance(value, dict):
                outcome.reason = "answer_not_json: most answers are JSON objects, this one is not"
    if name is None or sum(name in value for value in objects) <= JSON_MAJORITY * len(objects):
        return
    for outcome, value in zip(live, parsed, strict=True):
        if outcome.reason is not None:
            continue
        label = value.get(name) if isinstance(value, dict) else None
        if label is None or isinstance(label, dict | list) or not str(label).strip():
            outcome.reason = f"answer_without_label: the answer has no text in {name!r}"
        elif outcome.label is None:
            outcome.label = str(label)


def _check_schema(live: Sequence[Outcome], parsed: Sequence[Any], schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"data.answer_schema is not a JSON Schema: {error.message}") from None
    validator = Draft202012Validator(schema)
    for outcome, value in zip(live, parsed, strict=True):
        if value is None:
            outcome.reason = "answer_not_json: data.answer_schema asks for JSON"
            continue
        fault = next(validator.iter_errors(value), None)
        if fault is not None:
            where = "/".join(map(str, fault.absolute_path)) or "its top level"
            outcome.reason = f"answer_schema: at {where}, {fault.validator} is not met"
