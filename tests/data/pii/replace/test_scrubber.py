"""Rows through the scrubber with the usual model; what a maker lets through is seen."""

import json
import random
import re
from collections import Counter

import pytest
from faker import Faker
from stdnum import iban, luhn
from tests.lab.data_runs import answer, chat, text

from tuneline.config import DataConfig
from tuneline.data.pii.find.detector import Detector
from tuneline.data.pii.find.entities import ENTITIES, Settings
from tuneline.data.pii.find.texts import shared_parts
from tuneline.data.pii.replace.scrubber import left_values, make_scrubber
from tuneline.data.pii.replace.surrogates import Surrogates, tokens

LEFT = [
    # text, replaced values, what is left of them
    ("Dear Mr Kowalczyk, thanks", [("PERSON", "Jan Kowalczyk")], ["Kowalczyk"]),
    ("we called jan kowalczyk", [("PERSON", "Jan Kowalczyk")], ["jan kowalczyk"]),
    ("will you mark it? Will it?", [("PERSON", "Mark Will")], []),
    ("Please ask Will about it.", [("PERSON", "Mark Will")], ["Will"]),
    ("ends in 1234, really", [("CREDIT_CARD", "4111 1111 1111 1234")], ["1234"]),
    ("in 2019 it was 1,234.50", [("ID_NUMBER", "AB-2019-1234")], []),
    ("it was 1234.50, $1234, 1234 %, 1234 €", [("ID_NUMBER", "AB-1234")], []),
    ("in 2019", [("DATE", "3 May 2019")], []),
    ("on 3 may 2019", [("DATE", "3 May 2019")], ["3 may 2019"]),
    ("the pin is 4471.", [("PASSWORD", "4471")], ["4471"]),
    ("read four four one again", [("ID_NUMBER", "Four four one")], ["four four one"]),
    ("support and Berliner", [("EMAIL_ADDRESS", "support@x.com"), ("LOCATION", "Berlin")], []),
]


@pytest.mark.parametrize(("said", "values", "left"), LEFT)
def test_what_is_left_of_values(said, values, left):
    assert [said[hit.start : hit.end] for hit in left_values(said, values)] == left


def rows_of(people):
    return [
        chat(
            f"{text(n)}. My name is {name}, my account is 8814 22{n:02d} 77, "
            f"mail {name.split()[0]}{n}@post.de",
            answer("login", f"Dear {name}, account 8814 22{n:02d} 77: {text(n, 3)}"),
        )
        for n, name in enumerate(people)
    ]


@pytest.fixture(scope="module")
def scrubber():
    return make_scrubber(DataConfig(source="rows.jsonl"))


PEOPLE = ["Hannah Murphy", "Mark Will", "oksana kowalczyk", "José García", "Bill Short"]


def test_nothing_of_a_value_stands_in_a_scrubbed_row(scrubber):
    for n, (row, result) in enumerate(zip(rows_of(PEOPLE), scrub(scrubber, PEOPLE), strict=True)):
        written = json.dumps(result.messages, ensure_ascii=False).casefold()
        words = set(PEOPLE[n].casefold().split()) - {"will", "mark", "short", "bill"}
        assert not [word for word in [*words, f"8814 22{n:02d} 77", "@post.de"] if word in written]
        assert (result.residual, result.left) == (0, 0)
        assert json.loads(result.messages[-1]["content"])["intent"] == "login"
        assert row[1]["content"] != result.messages[1]["content"]


def scrub(scrubber, people):
    return list(scrubber.each([(None, row) for row in rows_of(people)]))


def test_equal_prompts_stay_equal_and_others_share_nothing(scrubber):
    (row,) = rows_of([PEOPLE[0]])
    first, again = scrub(scrubber, [PEOPLE[0]]), scrub(scrubber, [PEOPLE[0]])
    assert first == again
    other = next(scrubber.each([(None, [*row[:-1], {"role": "assistant", "content": "y"}])]))
    assert other.messages[:-1] == first[0].messages[:-1]
    thanks = {"role": "user", "content": f"{row[-2]['content']} Thanks."}
    other = next(scrubber.each([(None, [*row[:-2], thanks, row[-1]])]))
    assert not other.messages[-2]["content"].startswith(first[0].messages[-2]["content"])


def test_ordinary_rows_with_planted_names_are_not_rejected(scrubber):
    rows = [
        chat(f"{text(n)}, this is {PEOPLE[n % 5]}. Will you mark the bill?", f"Hello {text(n, 3)}")
        for n in range(100)
    ]
    results = list(scrubber.each([(None, row) for row in rows]))
    assert Counter(bool(r.residual or r.left) for r in results) == {False: 100}


def test_names_in_a_shared_prompt_reject_no_row():
    system = "You are Anna Miller of Acme. Write to anna.miller@shop.example if unsure."
    rows = [chat(f"{text(n)}, I am Anna Smith", text(n, 3), system) for n in range(30)]
    scrubber = make_scrubber(DataConfig(source="rows.jsonl"), shared_parts(rows))
    results = list(scrubber.each([(None, row) for row in rows]))
    assert len({result.messages[0]["content"] for result in results}) == 1
    assert not any("Smith" in result.messages[1]["content"] or result.left for result in results)


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
    (
        "STREET_ADDRESS",
        "204 east 9th street apt 5b",
        r"\d{3} [a-z]+ \d[a-z]{2} [a-z]+ [a-z]+ \d[a-z]",
    ),
    ("STREET_ADDRESS", "LINDENWEG 14A", r"[A-Z]+ \d\d[A-Z]"),
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
