import pytest

from tuneline.data.conversations.answers import answer_object, dump_like, parse_answer


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"b":"é"}', '{"a": 1, "b": "é"}', '{"a": 1, "b": "\\u00e9"}', '{"a":1,"b":"\\u00e9"}'],
)
def test_an_answer_keeps_its_style(text):
    assert dump_like(parse_answer(text), text) == text


def test_what_is_no_json():
    for text in ('{"a": 1', '{"a": 1, "a": 2}', "NaN", "[" * 10_000, "plain"):
        assert parse_answer(text) is None
        assert answer_object(text) is None
    assert answer_object("[1]") is None
    assert answer_object(' {"a": 1}') == {"a": 1}
