import pytest
from benchmarks.workloads.pii_sentences import (
    group_names,
    leaked_sentences,
    leaks,
    make_sentences,
    sentence_groups,
)

from tuneline.data.pii.hits import PATTERN_ENTITIES
from tuneline.data.pii.languages import foreign_language, is_dni, is_nir, likeliest
from tuneline.data.pii.patterns import find
from tuneline.data.pii.profiles import uncovered_languages
from tuneline.data.pii.scrubber import Scrubber
from tuneline.data.pii.settings import Settings

ORDINARY = {
    "de": [
        "Die Bestellung 12345678 kam am 3.5.2024 nicht an, Rechnung 2024-000123.",
        "Ich warte seit 14 Tagen auf 2 Pakete, es waren 35 Euro.",
        "Der Weg 5 km weiter ist der Platz für 20 Leute.",
    ],
    "fr": [
        "La commande 12345678 du 3/5/2024 n'est pas arrivée.",
        "J'ai payé 35 euros pour 2 colis il y a 14 jours.",
        "Le mot de passe ne marche pas depuis 2024.",
    ],
    "es": [
        "El pedido 12345678 del 3/5/2024 no ha llegado.",
        "Pagué 35 euros por 2 paquetes hace 14 días.",
        "La contraseña no funciona desde 2024.",
    ],
}


@pytest.mark.parametrize("language", ["de", "fr", "es"])
def test_numbers_and_addresses_of_a_language(language):
    sentences = make_sentences(PATTERN_ENTITIES, 11, languages=[language])
    local = [c for c in sentences if c.language == language]
    assert {c.entity for c in local} >= {"PHONE_NUMBER", "BIRTH_DATE", "ID_NUMBER", "PASSWORD"}
    with_words = Scrubber(Settings(languages=(language,)))
    assert [c.text for c, leak in zip(local, leaked_sentences(with_words, local), strict=True)
            if leak] == []  # fmt: skip
    english = leaked_sentences(Scrubber(Settings()), local)
    assert sum(english) > 0.2 * len(local), "without the language's words many are missed"


@pytest.mark.parametrize(("language", "text"), [(k, t) for k, v in ORDINARY.items() for t in v])
def test_ordinary_text_of_a_language_is_left_alone(language, text):
    assert find(text, [language]) == []
    assert foreign_language(text, ["en"]) in (language, None)


def test_identity_numbers_with_a_check():
    assert is_dni("12345678Z")
    assert is_dni("X1234567L")
    assert not is_dni("12345678A")
    assert is_nir("2 55 08 14 168 025 38")
    assert not is_nir("2 55 08 14 168 025 39")
    assert [h.entity for h in find("Soy 12345678Z", ["es"])] == ["ID_NUMBER"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ich habe die Bestellung nicht erhalten und möchte das Geld zurück.", "de"),
        ("Bonjour, je vous écris pour une commande qui n'est pas arrivée.", "fr"),
        ("No recibí mi pedido y quiero que me devuelvan el dinero por favor.", "es"),
        ("Я не получил свой заказ", "Cyrillic"),
        ("我没有收到包裹", "Chinese or Japanese"),
        ("the parcel is not here, I think", None),
        ("Is der Zug late?", None),
        ("ok 123", None),
        ("", None),
    ],
)
def test_the_language_of_a_row(text, language):
    assert foreign_language(text, ["en"]) == language
    if language in ("de", "fr", "es"):
        assert foreign_language(text, ["en", language]) is None
        assert likeliest(text, ["en", language]) == language


def test_a_text_goes_to_the_first_language_where_nothing_tells():
    assert likeliest("ok", ["de", "en"]) == "de"


def test_what_covers_a_language():
    models = {"en": "one"}
    assert uncovered_languages(["en"], ["gdpr"], models) == {}
    assert "data.spacy_models.de" in uncovered_languages(["de"], ["gdpr"], models)["de"]
    assert uncovered_languages(["de"], ["gdpr"], {**models, "de": "two"}) == {}
    assert uncovered_languages(["en", "de"], ["pci"], models) == {}, "no names are demanded"
    assert "no patterns" in uncovered_languages(["fi"], ["pci"], {**models, "fi": "x"})["fi"]


def test_groups_of_sentences():
    assert sentence_groups(["PHONE_NUMBER", "CREDIT_CARD"], ["de"]) == [
        ("PHONE_NUMBER", "de"),
        ("CREDIT_CARD", "en"),
    ]
    assert group_names(["PHONE_NUMBER", "CREDIT_CARD"], ["en", "de"]) == [
        "PHONE_NUMBER",
        "PHONE_NUMBER.de",
        "CREDIT_CARD",
    ]
    for sentence in make_sentences(["STREET_ADDRESS"], 3, languages=["de", "fr", "es"]):
        assert leaks(sentence, sentence.text)
