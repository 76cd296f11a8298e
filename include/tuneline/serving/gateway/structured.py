"""Whether an answer is the JSON that its request asked for by `response_format`.

Engines constrain their decoding by the schema, or ignore it; a chain looks at what came. Schemas
come from clients, so that nothing is fetched for one, patterns are not matched (a regular
expression can take for ever), and references are followed a limited number of times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

# References that one answer may follow; a schema in which each leads to two others never ends.
_MOST_REFERENCES = 1_000
_LEFT: ContextVar[int] = ContextVar("_LEFT")


class _TooManyReferences(Exception):
    """A schema that is too much work to judge by."""


class Judge:
    """The form that a request asked for.

    Args:
        schema: the JSON Schema; None for any JSON object.
    """

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self._schema = schema

    def accepts(self, text: str) -> bool:
        """Return True if a text is JSON of that form, or its schema cannot be judged by."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if self._schema is None:
            return isinstance(value, dict)
        _LEFT.set(_MOST_REFERENCES)
        try:
            # An empty registry fetches nothing: an address in `$ref` stays unresolved.
            return bool(_Limited(self._schema, registry=Registry()).is_valid(value))
        except (_TooManyReferences, Unresolvable, RecursionError):
            return True


def judge_of(body: Mapping[str, Any]) -> Judge | None:
    """Return the form that a request asks for; None if it asks for none that can be judged.

    A schema that is none is left to the engine, which refuses it.
    """
    asked = body.get("response_format")
    if not isinstance(asked, dict):
        return None
    if asked.get("type") == "json_object":
        # llama.cpp takes the schema here too.
        schema = asked.get("schema")
    elif asked.get("type") == "json_schema":
        stated = asked.get("json_schema")
        schema = stated.get("schema") if isinstance(stated, dict) else None
        if schema is None:
            return None
    else:
        return None
    if not isinstance(schema, dict):
        return Judge(None)
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError):
        return None
    return Judge(schema)


def _counted(keyword: str) -> Any:
    follow = Draft202012Validator.VALIDATORS[keyword]

    def check(validator: Any, target: Any, value: Any, where: Any) -> Iterator[ValidationError]:
        left = _LEFT.get() - 1
        _LEFT.set(left)
        if left < 0:
            raise _TooManyReferences
        yield from follow(validator, target, value, where)

    return check


def _unjudged(*_: Any) -> Iterator[ValidationError]:
    return iter(())


def _additional(validator: Any, allowed: Any, value: Any, where: Any) -> Iterator[ValidationError]:
    # It matches the patterns of its neighbour.
    if "patternProperties" not in where:
        follow = Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from follow(validator, allowed, value, where)


_Limited = extend(
    Draft202012Validator,
    {
        "$ref": _counted("$ref"),
        "$dynamicRef": _counted("$dynamicRef"),
        "pattern": _unjudged,
        "patternProperties": _unjudged,
        "additionalProperties": _additional,
        "unevaluatedProperties": _unjudged,
    },
)
