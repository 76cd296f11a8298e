"""OpenAI's own client against the gateway."""

import json

import openai
import pytest

from .conftest import upstream_entry

ASKED = [{"role": "user", "content": "a b c"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def gateway(start, small):
    return start(upstream_entry(small, ping=False))


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, timeout=20) as made:
        yield made


def test_whole_answers(client, gateway):
    answer = client.chat.completions.with_raw_response.create(model="support", messages=ASKED)
    assert answer.headers["x-tuneline-served-by"] == "small"
    parsed = answer.parse()
    assert parsed.choices[0].message.content == "".join(f"small-{i} " for i in range(5))
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (3, 5)
    text = client.completions.create(model="support", prompt="a b", max_tokens=2)
    assert text.choices[0].text == "small-0 small-1 "
    with pytest.raises(openai.BadRequestError, match="Embeddings are not offered"):
        client.embeddings.create(model="support", input=["a b"])
    assert [model.id for model in client.models.list()] == ["support"]
    assert client.models.retrieve("support").owned_by == "tuneline"
    # The ledger has what the client was told.
    rows = gateway.rows(2)
    assert [row["completion_tokens"] for row in rows] == [5, 2]


def test_streams(client, gateway):
    stream = client.chat.completions.create(
        model="support", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "".join(f"small-{i} " for i in range(5))
    assert chunks[-1].usage.completion_tokens == gateway.rows(1)[0]["completion_tokens"] == 5


def test_tools_whole_and_streamed(client):
    answer = client.chat.completions.create(model="support", messages=ASKED, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Ulm"}
    with client.chat.completions.stream(model="support", messages=ASKED, tools=[TOOL]) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Ulm"}')


def test_errors_have_the_clients_classes(client, gateway, small):
    create = client.with_options(max_retries=0).chat.completions.create
    with pytest.raises(openai.NotFoundError, match="does not exist here") as missing:
        create(model="other", messages=ASKED)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="`temperature` must be a number") as wrong:
        create(model="support", messages=ASKED, temperature="hot")
    assert wrong.value.param == "temperature"
    other = client.with_options(api_key="tl-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        other.models.list()
    for mode, error in (
        ("error", openai.InternalServerError),
        ("busy", openai.InternalServerError),
    ):
        small.mode = mode
        with pytest.raises(error, match="No model could answer"):
            create(model="support", messages=ASKED)


def test_it_tries_again_what_may_pass_and_nothing_else(client, gateway, small):
    trying = client.with_options(max_retries=2).chat.completions.create
    small.mode = "error"
    with pytest.raises(openai.InternalServerError):
        trying(model="support", messages=ASKED)
    assert len(gateway.rows(3)) == 3
    small.mode = "bad_request"
    with pytest.raises(openai.BadRequestError, match="top_k must be"):
        trying(model="support", messages=ASKED)
    gateway.rows(4)


def test_a_stream_that_breaks_is_an_error_of_the_client(client, small):
    small.mode = "die_after"
    stream = client.chat.completions.create(model="support", messages=ASKED, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
