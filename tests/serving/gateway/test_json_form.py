"""Answers held against the schema of their request, by the process that does it."""

import asyncio
import threading
import time

import httpx
import pytest

from tuneline.serving.gateway.chain.json_form import FormJudge, JsonForm, json_form_of

ORDER = {
    "type": "object",
    "properties": {"id": {"type": "integer"}},
    "required": ["id"],
    "additionalProperties": False,
}
LARGE = {"properties": {f"p{i}": {"type": "string", "minLength": 1} for i in range(18_000)}}


def doubling() -> dict:
    """A schema of 41 definitions that follows 2 ** 40 references."""
    steps = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    return {"$defs": {**steps, "a40": {}}, "$ref": "#/$defs/a0"}


def asked(schema: object) -> dict:
    stated = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": stated}}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    # The process may start slowly on a machine that others use.
    monkeypatch.setattr("tuneline.serving.gateway.chain.json_form._PATIENCE_S", 60)


@pytest.fixture(scope="module")
def judge():
    """Returns whether a text is accepted, and None if nobody could judge."""
    unjudged = []
    made = FormJudge(lambda: unjudged.append(1))

    def accepts(body: dict, *texts: str) -> bool | None:
        unjudged.clear()
        form = json_form_of(body)
        assert form is not None
        accepted = asyncio.run(made.accepts(form, texts))
        assert accepted or not unjudged
        return None if unjudged else accepted

    yield accepts
    made.close()


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"id": 7}', True),
        ('{"id": "7"}', False),
        ("{}", False),
        ('{"id": 7, "more": 1}', False),
        ('Here it is: {"id": 7}', False),
        ('{"id": 7', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_a_schema_is_held_against_the_answer(judge, text, accepted):
    assert judge(asked(ORDER), text) is accepted
    assert judge(asked(ORDER), '{"id": 1}', text) is accepted


def test_any_object_will_do_without_a_schema(judge):
    body = {"response_format": {"type": "json_object"}}
    assert judge(body, '{"anything": 1}')
    assert not judge(body, "[1]")
    assert not judge(body, "no JSON")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": "json"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_schema"}},
        asked(LARGE),
    ],
)
def test_what_asks_for_no_form_that_can_be_judged(body):
    assert json_form_of(body) is None


@pytest.mark.parametrize(
    ("schema", "accepted"),
    [
        (doubling(), None),
        ({"$ref": "#"}, None),
        ({"propertyNames": {"pattern": "(a+)+$"}}, None),
        ({"patternProperties": {"(a+)+$": {"type": "string"}}}, None),
        ({"type": 7}, None),
        ({"propertyNames": {"pattern": "a{99999999999999999999}"}}, None),
        ({"propertyNames": {"pattern": "(?=a)"}}, True),
        ({"$ref": "http://127.0.0.1:9/fetched"}, None),
        ({"$ref": "file:///etc/hostname"}, None),
    ],
)
def test_a_hostile_schema_costs_little(judge, schema, accepted):
    assert judge(asked(schema), '{"' + "a" * 60 + '!": 1}') is accepted


def test_what_takes_too_long_passes_and_the_next_is_judged(judge):
    assert judge(asked(doubling()), "{}") is None
    assert judge(asked(ORDER), "{}") is False
    # A form without a schema needs no process.
    plain = FormJudge(lambda: None)
    assert asyncio.run(plain.accepts(JsonForm(), ["{}"]))
    assert plain._process is None
    plain.close()


@pytest.mark.parametrize("schema", [doubling(), {"$ref": "#"}])
def test_nobody_waits_for_another_clients_schema(calm, small, large, schema):
    gateway = calm(small, large)
    small.reply = "{}"
    gaps, stop = [0.0], threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=gateway.url) as client:
            while not stop.is_set():
                began = time.perf_counter()
                assert client.get("/v1/health/live").status_code == 200
                gaps.append(time.perf_counter() - began)

    prober = threading.Thread(target=probe)
    prober.start()
    response = gateway.chat(**asked(schema))
    stop.set()
    prober.join()
    # Nobody could say that it is wrong, so it goes to the client.
    assert response.status_code == 200
    assert response.headers["x-tuneline-served-by"] == "small"
    assert max(gaps) < 0.9
    assert "tuneline_gateway_json_unjudged_total 1" in gateway.client.get("/metrics").text
