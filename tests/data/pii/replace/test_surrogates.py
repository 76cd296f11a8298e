import random
import re

import pytest
from faker import Faker
from stdnum import iban, luhn

from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import ENTITIES, Settings
from tuneline.data.pii.replace.surrogates import Surrogates, tokens

VALUES = {
    "EMAIL_ADDRESS": "anna.smith@acme.com",
    "PHONE_NUMBER": "+1 212 867 5309",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN_CODE": "GB29 NWBK 6016 1331 9268 19",
    "US_SSN": "536-22-1234",
    "IP_ADDRESS": "192.168.7.77",
    "STREET_ADDRESS": "12 Maple Street, Boise",
    "BIRTH_DATE": "3 May 1980",
    "ID_NUMBER": "X12345678",
    "PERSON": "Anna Smith",
    "LOCATION": "Berlin",
}
# Value and the form of its surrogate.
FORMS = [
    ("PERSON", "O'Brien-Meyer's", r"[A-Z]\w+-[A-Z]\w+'s"),
    ("PERSON", "j. KOWALCZYK", r"[a-z]\. [A-Z]+"),
    ("PERSON", "k o w a l", r"\w \w \w \w \w"),
    ("EMAIL_ADDRESS", "j.kwan@fastmail.fm", r"[a-z.]+\d*@example\.[a-z]+"),
    ("EMAIL_ADDRESS", "ANNA_LEE77@ACME.ORG", r"[A-Z.]+\d*@EXAMPLE\.[A-Z]+"),
    ("EMAIL_ADDRESS", "pnav 4 at gmail dot com", r"[a-z]+\d*@example\.[a-z]+"),
    ("EMAIL_ADDRESS", "anna gmail.com", r"[a-z]+\d*@example\.[a-z]+"),
    ("BIRTH_DATE", "3/9/81", r"[124-9]/[1-8]/8[02-9]"),
    ("BIRTH_DATE", "02/11/1979", r"0[13-9]/1[02]/197[0-8]"),
    ("BIRTH_DATE", "1971-12-30", r"197[02-9]-1[01]-[12]\d"),
    ("BIRTH_DATE", "5th November 1962", r"\d+ [A-Z][a-z]+ 196[013-9]"),
    ("BIRTH_DATE", "twenty second feb eighty four", r"\d+ [a-z]+"),
    ("BIRTH_DATE", "zweiter Mai", r"\d+ [A-Z][a-z]+"),
    ("DATE", "May 3rd, 2019", r"\d+ [A-Z][a-z]+ 2019"),
    ("STREET_ADDRESS", "204 east 9th street apt 5b", r"\d+ [a-z. ]+\d*"),
    ("STREET_ADDRESS", "LINDENWEG 14A", r"\d+ [A-Z. ]+\d*"),
    ("PHONE_NUMBER", "(415) 867-5309", r"\([2-9]02\) 555-01\d\d"),
    ("PHONE_NUMBER", "+49 170 1234567", r"\+11 \d{3} 55501\d\d"),
    ("ID_NUMBER", "four four seven double two", r"[1-9]{5}"),
    ("ID_NUMBER", "jane_doe", r"[a-z]{4}_[a-z]{3}"),
    ("CREDIT_CARD", "09/27", r"\d\d/\d\d"),
    ("CREDIT_CARD", "1111", r"\d{4}"),
    ("POSTAL_CODE", "83709", r"000\d\d"),
    ("PASSWORD", "4471", r"\[PASSWORD\]"),
    ("PASSWORD", "hunter2!", r"\[PASSWORD\]"),
]


@pytest.mark.parametrize("entity", VALUES)
def test_the_same_value_gets_the_same_surrogate_in_a_row_and_seldom_in_others(entity):
    first = Surrogates("row", 7)
    made = first.of(entity, VALUES[entity])
    assert (
        made == first.of(entity, VALUES[entity]) == Surrogates("row", 7).of(entity, VALUES[entity])
    )
    assert made.casefold() == first.of(entity, VALUES[entity].upper()).casefold()
    others = {Surrogates(str(row), 7).of(entity, VALUES[entity]) for row in range(200)}
    assert len(others) > 60


@pytest.mark.parametrize(("entity", "value", "form"), FORMS)
def test_surrogates_have_the_form_of_the_original_and_none_of_its_tokens(entity, value, form):
    for row in range(60):
        made = Surrogates(str(row), 7).of(entity, value)
        assert re.fullmatch(form, made), made
        assert not tokens(made, entity) & tokens(value, entity)
        if entity in ("PHONE_NUMBER", "BIRTH_DATE", "PERSON"):
            kept = {"555", "11", "s"}
            pairs = zip(re.findall(r"\w+", value), re.findall(r"\w+", made), strict=False)
            assert not [a for a, b in pairs if a == b and a not in kept]


def test_no_surrogate_shares_a_token_with_any_value_of_its_row():
    fake, draw = Faker(["en_US", "de_DE", "fr_FR"]), random.Random(5)
    fake.seed_instance(5)
    for row in range(300):
        values = [
            ("PERSON", fake.name()),
            ("EMAIL_ADDRESS", fake.email()),
            ("STREET_ADDRESS", fake.street_address()),
            ("LOCATION", fake.city()),
            ("PHONE_NUMBER", fake.numerify("(###) 555-####")),
            ("ID_NUMBER", fake.bothify("??######")),
            ("CREDIT_CARD", fake.credit_card_number()),
            ("BIRTH_DATE", fake.date()),
        ]
        draw.shuffle(values)
        surrogates = Surrogates(str(row), 7, draw.choice(["en", "de", "fr", "nl"]))
        surrogates.avoid(values)
        identifying = set().union(*(tokens(value, entity) for entity, value in values))
        for entity, value in values:
            made = surrogates.of(entity, value)
            assert not tokens(made, entity) & identifying, (made, values)


def test_numbers_are_never_issued():
    finder = Detector(Settings()).shapes
    for row in range(200):
        surrogates = Surrogates(str(row), 7)
        made = {entity: surrogates.of(entity, value) for entity, value in VALUES.items()}
        assert not luhn.is_valid(made["CREDIT_CARD"].replace(" ", ""))
        assert not iban.is_valid(made["IBAN_CODE"])
        assert made["US_SSN"].startswith("000-00-")
        assert made["IP_ADDRESS"].startswith("192.0.2.")
        assert made["EMAIL_ADDRESS"].rpartition(".")[2] in ("example", "com", "net", "org")
        assert "55501" in re.sub(r"\D", "", made["PHONE_NUMBER"])
        assert [h for h in finder(f"Pay {made['CREDIT_CARD']}.") if h.entity == "CREDIT_CARD"] == []


def test_names_agree_in_a_row_and_are_of_its_language():
    surrogates = Surrogates("row", 7, "de")
    first, last = surrogates.of("PERSON", "Anna Smith").split()
    assert surrogates.of("PERSON", "anna") == first.lower()
    assert surrogates.of("PERSON", "ANNA SMITH") == f"{first} {last}".upper()
    assert surrogates.of("PERSON", "Bob") != first
    german = {Surrogates(str(n), 7, "de").of("LOCATION", "Rome") for n in range(50)}
    english = {Surrogates(str(n), 7, "xx").of("LOCATION", "Rome") for n in range(50)}
    assert len(german & english) < 3


def test_a_maker_that_repeats_the_value_leaves_a_placeholder(monkeypatch):
    path = "tuneline.data.pii.replace.surrogates._MAKERS"
    monkeypatch.setattr(path, dict.fromkeys(ENTITIES, lambda row, draw, value: f"{value} "))
    for entity, value in VALUES.items():
        assert Surrogates("row", 7).of(entity, value) == f"[{entity}]"
