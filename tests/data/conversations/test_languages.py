import pytest

from tuneline.data.conversations.languages import foreign_language, language_of, likeliest


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
