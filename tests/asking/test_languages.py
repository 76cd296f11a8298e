import pytest

from tuneline.asking.languages import language_of


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
