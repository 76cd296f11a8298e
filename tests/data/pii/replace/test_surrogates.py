import re

import pytest

from tuneline.data.pii.hits import PATTERN_ENTITIES
from tuneline.data.pii.patterns import find
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


FORMS = {
    "BIRTH_DATE": [
        ("march 9 81", r"[a-z]{3,9} [1-8] 8[02-9]"),
        ("02/11/1979", r"0[1-9]/1[02]/197[0-8]"),
        ("1971-12-30", r"197[02-9]-1[01]-\d\d"),
        ("5th November 62", r"\d(?:st|nd|rd|th) [A-Z][a-z]+ 6[013-9]"),
        ("twenty second feb eighty four", r"twenty [a-z]+ [a-z]{3} [a-z]+ [a-z]+"),
        ("19360412", r"194\d[01]\d[1-2]\d"),
    ],
    "EMAIL_ADDRESS": [
        ("j.kwan@fastmail.fm", r"[a-z]\.[a-z]{4,}@office\.example|[a-z]\.[a-z]+@mail\.example"),
        ("ANNA_LEE77@ACME.ORG", r"[A-Z]+_[A-Z]{3}\d\d@EXAMPLE\.(?:COM|NET)"),
        ("pnav 4 at gmail dot com", r"[a-z]+ \d at mail dot example"),
    ],
    "STREET_ADDRESS": [
        ("204 east 9th street apt 5b", r"\d{3} [a-z]+ \d(?:st|nd|rd|th) [a-z]+ unit \d[a-z]"),
        (
            "12 Maple Ave, Boise, ID 83709",
            r"\d\d [A-Z]\w+ (?:St|Rd|Ln|Dr|Blvd), [A-Z]\w+, [A-Z]{2} \d{5}",
        ),
        ("LINDENWEG 14A", r"[A-Z]+WEG \d\d[A-Z]"),
    ],
}


@pytest.mark.parametrize(
    ("entity", "value", "form"), [(e, *case) for e, cases in FORMS.items() for case in cases]
)
def test_surrogates_have_the_form_of_the_original(entity, value, form):
    kept = {"twenty", "at", "dot", "weg", "th", "st", "nd", "rd"}
    for row in range(60):
        made = Surrogates(str(row), 7).of(entity, value)
        assert re.fullmatch(form, made), made
        before, after = (re.findall(r"\w+", text.casefold()) for text in (value, made))
        assert not [a for a, b in zip(before, after, strict=False) if a == b and a not in kept]


def test_the_parts_of_an_address_agree_in_a_row():
    surrogates = Surrogates("row", 7)
    whole = surrogates.of("STREET_ADDRESS", "63 Prospect Street, Nashua")
    assert whole.split(",")[0].split(" ", 1)[1] == surrogates.of(
        "STREET_ADDRESS", "Prospect Street"
    )


def test_rows_rarely_share_a_surrogate():
    for entity, value in (("EMAIL_ADDRESS", "anna@acme.org"), ("BIRTH_DATE", "march 9 1981")):
        made = {Surrogates(str(row), 7).of(entity, value) for row in range(100)}
        assert len(made) > 60, entity
