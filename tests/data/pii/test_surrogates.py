import pytest

from tuneline.data.pii.patterns import PATTERN_ENTITIES, find
from tuneline.data.pii.surrogates import Surrogates

VALUES = {
    "EMAIL_ADDRESS": "anna@example.com",
    "PHONE_NUMBER": "+1 212 555 0104",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN_CODE": "GB29NWBK60161331926819",
    "US_SSN": "078-05-1120",
    "IP_ADDRESS": "203.0.113.77",
    "STREET_ADDRESS": "12 Maple Street",
    "BIRTH_DATE": "3 May 1980",
    "ID_NUMBER": "X12345678",
    "PERSON": "Anna Smith",
    "LOCATION": "Berlin",
}


@pytest.mark.parametrize("entity", VALUES)
def test_the_same_value_gets_the_same_surrogate_in_a_row(entity):
    first = Surrogates("row", 7)
    made = first.of(entity, VALUES[entity])
    assert made.casefold() == first.of(entity, VALUES[entity].upper()).casefold()
    assert made == Surrogates("row", 7).of(entity, VALUES[entity])
    assert made != VALUES[entity]


def test_rows_and_seeds_do_not_share_surrogates():
    made = {
        Surrogates(str(row), seed).of("CREDIT_CARD", "4111") for row in range(40) for seed in (1, 2)
    }
    assert len(made) > 60


def test_numbers_are_never_real():
    for row in range(200):
        surrogates = Surrogates(str(row), 7)
        for entity in ("CREDIT_CARD", "IBAN_CODE", "US_SSN"):
            assert find(f"It is {surrogates.of(entity, VALUES[entity])}.") == []


def test_every_pattern_entity_has_one():
    for entity in PATTERN_ENTITIES:
        assert Surrogates("row", 7).of(entity, "anything 1")


def test_parts_of_a_name_agree():
    surrogates = Surrogates("row", 7)
    first, last = surrogates.of("PERSON", "Anna Smith").split()
    assert surrogates.of("PERSON", "anna") == first.lower()
    assert surrogates.of("PERSON", "ANNA SMITH") == f"{first} {last}".upper()
    assert surrogates.of("PERSON", "Bob") != first
