import pytest
from tests.lab.data_runs import in_form

from tuneline.data.conversations.answers import answer_object, dump_like, parse_answer
from tuneline.data.conversations.formats import FORMS, Malformed, detect, form_of, to_messages
from tuneline.data.conversations.languages import foreign_language, language_of, likeliest

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_and_becomes_turns(form):
    value = in_form(TURNS, form)
    assert form_of(value) == form
    assert to_messages(value, form) == TURNS


def test_alpaca_input_joins_the_instruction():
    row = {"instruction": "Add up.", "input": "1 2", "output": "3"}
    assert to_messages(row, "alpaca")[0]["content"] == "Add up.\n\n1 2"


def test_plain_prompt_and_text_parts():
    row = {"prompt": "hi", "completion": "ho"}
    assert to_messages(row, "prompt_completion") == TURNS[1:]
    row = {"prompt": TURNS[:2], "completion": TURNS[2:]}
    assert to_messages(row, "prompt_completion") == TURNS
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    row = {"messages": [{"role": "user", "content": parts}, TURNS[2]]}
    assert to_messages(row, "messages") == TURNS[1:]


def test_the_commonest_form_is_the_files():
    assert detect(["alpaca", "messages", "messages", None]) == "messages"
    assert detect([None, None]) is None


@pytest.mark.parametrize(
    ("form", "row", "code"),
    [
        ("messages", {"question": "a"}, "unknown_format"),
        ("messages", in_form(TURNS, "alpaca"), "unknown_format"),
        ("messages", [1], "unknown_format"),
        ("messages", {"messages": "hi"}, "wrong_type"),
        ("messages", {"messages": ["hi"]}, "wrong_type"),
        ("messages", {"messages": [{"role": 3, "content": "a"}]}, "unknown_role"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "wrong_type"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "tool_call",
        ),
        ("sharegpt", {"conversations": [{"from": "robot", "value": "x"}]}, "unknown_role"),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "x"}]}, "unknown_role"),
        ("alpaca", {"instruction": 1, "output": "x"}, "wrong_type"),
        ("chatml_text", {"text": "<|im_start|>user\nhi"}, "broken_template"),
        ("chatml_text", {"text": "so <|im_start|>user\nhi<|im_end|>"}, "broken_template"),
    ],
)
def test_what_does_not_have_the_form(form, row, code):
    with pytest.raises(Malformed, match=f"^{code}: "):
        to_messages(row, form)


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


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ich habe die Bestellung nicht erhalten und möchte das Geld zurück.", "de"),
        ("Bonjour, je vous écris pour une commande qui n'est pas arrivée.", "fr"),
        ("No recibí mi pedido y quiero que me devuelvan el dinero por favor.", "es"),
        ("Я не получил свой заказ", "CYRILLIC"),
        ("我没有收到包裹", "CJK"),
        ("まだ荷物が届いていません", "CJK"),
        ("the parcel is not here, I think", None),
        ("Is der Zug late?", None),
        ("ok 123", None),
        ("", None),
    ],
)
def test_the_language_of_a_row(text, language):
    assert foreign_language(text, ["en"]) == language
    assert foreign_language(text, ["en", "no"]) is None, "nothing is known of it"
    if language in ("de", "fr", "es"):
        assert foreign_language(text, ["en", language]) is None
        assert likeliest(text, ["en", language]) == language


def test_a_text_goes_to_the_first_language_where_nothing_tells():
    assert likeliest("ok", ["de", "en"]) == "de"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Why was I charged twice for this order?", "en"),
        ("Warum wurde mir die Bestellung zweimal berechnet?", "de"),
        ("Pourquoi ma carte est-elle refusée dans les magasins ?", "fr"),
        ("¿Por qué no puedo usar mi tarjeta en el cajero?", "es"),
        ("Waarom is mijn betaling niet aangekomen?", "nl"),
        ("Dlaczego moja karta nie działa w sklepie?", "pl"),
        ("Почему мой платёж не прошёл?", "CYRILLIC"),
        ("为什么我的付款失败了?", "CJK"),
        ("1234 5678", "unknown"),
        ("budafi kelo mazu", "unknown"),
        ("", "unknown"),
    ],
)
def test_languages(text, language):
    assert language_of(text) == language
