import pytest

from tuneline.serving.gateway.structured import judge_of


def asked(schema: object) -> dict:
    stated = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": stated}}


ORDER = {
    "type": "object",
    "properties": {"id": {"type": "integer"}},
    "required": ["id"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"id": 7}', True),
        ('{"id": "7"}', False),
        ("{}", False),
        ('{"id": 7, "more": 1}', False),
        ('Here it is: {"id": 7}', False),
        ('{"id": 7', False),
        ("", False),
    ],
)
def test_a_schema_is_held_against_the_answer(text, accepted):
    assert judge_of(asked(ORDER)).accepts(text) is accepted


def test_any_object_will_do_without_a_schema():
    judge = judge_of({"response_format": {"type": "json_object"}})
    assert judge.accepts('{"anything": 1}')
    assert not judge.accepts("[1]")
    assert not judge.accepts("no JSON")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": "json"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_schema"}},
        asked({"type": 7}),
    ],
)
def test_what_asks_for_no_form_is_not_judged(body):
    assert judge_of(body) is None


def doubling() -> dict:
    """A schema of 41 definitions that follows 2 ** 40 references."""
    steps = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    return {"$defs": {**steps, "a40": {}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    "schema",
    [
        doubling(),
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:9/fetched"},
        {"propertyNames": {"pattern": "(a+)+$"}},
        {"patternProperties": {"(a+)+$": {}}, "additionalProperties": False},
    ],
)
def test_a_schema_that_would_cost_too_much_passes_every_answer(schema):
    assert judge_of(asked(schema)).accepts('{"' + "a" * 60 + '!": 1}')
