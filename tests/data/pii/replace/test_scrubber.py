"""Rows through the scrubber with the usual model; what a maker lets through is seen."""

import json
from collections import Counter

import pytest
from tests.lab.data_runs import answer, chat, text

from tuneline.config import DataConfig
from tuneline.data.pii.find.texts import shared_parts
from tuneline.data.pii.replace.residuals import left_values
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.data.pii.replace.surrogates import Surrogates

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


def test_values_that_a_maker_returns_are_counted(scrubber, monkeypatch):
    monkeypatch.setattr(Surrogates, "of", lambda self, entity, value: value)
    assert all(result.left > 0 for result in scrub(scrubber, PEOPLE))


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
