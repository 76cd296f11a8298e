"""What an answer copies from the turns before it: kept by the scrubber, and torn on purpose."""

import json
import random

import pytest
from tests.lab.data_runs import DataLab, chat
from tests.lab.runs import broken, value

from tuneline.config import DataConfig
from tuneline.data.pii.find.texts import shared_parts
from tuneline.data.pii.measure.witness import answers_torn
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.data.pii.replace.torn import torn_copies
from tuneline.verdicts import status

NAMES = "Ingrid Halvorsen|Tadeusz Wójcik|José Peña|mary o'connor|Chidi Okonkwo-Bell|Zoltán Kovács"
NAMES = NAMES.split("|")
THINGS = "kettle|fiat panda|samsung galaxy s9|audi a 6|peugeot 308|clio".split("|")
STREETS = "14 Rosewood Lane, Dayton 45402|Birkenweg 3, 80331 München|8 Rue Haute in Lyon".split("|")


def shapes(draw):
    """Yield rows in which an answer copies from the turns before it."""
    name, thing, street = draw.choice(NAMES), draw.choice(THINGS), draw.choice(STREETS)
    first, number = name.split()[0], draw.randint(1_000, 9_999_999)
    mail = f"{draw.choice('bdkm')}{number}@posta.example"
    code = f"{draw.choice('BXK')}{draw.choice('LQ')}-{number}"
    town = street.split()[-1]
    year, count = draw.randint(2008, 2025), draw.randint(2, 9)
    yield chat(
        f"{name} here, my {thing} from {year} is broken, order {code}",
        json.dumps({"name": name, "thing": thing, "year": year, "order": code}),
    )
    yield chat(
        f"Please send {count} x {thing} to {street}. Account {number}, {name}, {mail}",
        json.dumps({"count": count, "to": {"line": street, "town": town}, "account": number,
                    "mails": [mail], "first": first}),
    )  # fmt: skip
    yield [
        *chat(f"hi, this is {name}, I live at {street}", f"Hello {first}, how can I help?"),
        *chat(f"where is {code}?", f"It goes to {street}, {name}: {code} left on Monday."),
    ]
    yield chat(
        f"{name} founded the shop in {town} in {year}. It sells the {thing}.\n\nWho founded it?",
        name,
    )
    call = json.dumps({"name": "find", "arguments": {"guest": name, "note": f'"{mail}"\n{first}'}})
    told = f'<tool_response>\n{{"guest": {json.dumps(name)}, "code": "{code}"}}\n</tool_response>'
    yield [
        *chat(f'find {name}, note "{mail}" and {first}', f"<tool_call>\n{call}\n</tool_call>"),
        *chat(told, f"{name} has {code}."),
    ]


def rows_of(seed, times=20):
    draw = random.Random(seed)
    return [row for _ in range(times) for row in shapes(draw)]


def scrub(rows):
    scrubber = make_scrubber(DataConfig(source="rows.jsonl", label_field=None), shared_parts(rows))
    return list(scrubber.each((None, row) for row in rows))


def test_copies_stay_copies_in_every_shape():
    rows = rows_of(1)
    results = scrub(rows)
    kept = [(row, result) for row, result in zip(rows, results, strict=True) if not result.torn]
    assert len(kept) >= 0.97 * len(rows)
    assert not any(result.residual or result.left for _, result in kept)
    assert all(answers_torn(row, result.messages, None) == 0 for row, result in kept)
    said = [(json.dumps(row), json.dumps(result.messages)) for row, result in kept]
    surnames = [json.dumps(name.split()[-1])[1:-1] for name in NAMES]
    assert not [one for old, new in said for one in surnames if one in old and one in new]
    for row, result in kept:
        for turn, made in zip(row, result.messages, strict=True):
            if turn["content"].startswith("{"):
                old, new = json.loads(turn["content"]), json.loads(made["content"])
                assert {k: type(v) for k, v in old.items()} == {k: type(v) for k, v in new.items()}


PARTS = [
    # Taken for a street in the question, and for a name in the answer.
    (
        "Not sure whom to ask, but please stop my order of 21 opel astras before it leaves Malaga!",
        "We stopped the order, sorry for the trouble with the opel astra.",
        "opel",
    ),
    # The answer alone takes the word before the town for a street.
    (
        "Fatima photographed her father's violin in Porto on Friday evening.",
        "Am Freitagabend fotografierte Fatima die Geige ihres Vaters in Porto.",
        "Porto",
    ),
]


@pytest.mark.parametrize(("asked", "answer", "shared"), PARTS)
def test_a_part_of_two_values_is_replaced_alike(asked, answer, shared):
    row = chat(asked, answer)
    (result,) = scrub([row])
    one, other = (
        made["content"]
        .replace(".", "")
        .split()[old["content"].replace(".", "").split().index(shared)]
        for old, made in zip(row, result.messages, strict=True)
    )
    assert one == other != shared


ASKED = "I am Ingrid Halvorsen, my clio (order KL-4471) goes to Dayton"
TORN = [
    # question and answer after scrubbing, the answer before it, torn
    (ASKED, '{"name": "Ingrid Halvorsen"}', ASKED, '{"name": "Ingrid Halvorsen"}', 0),
    (ASKED, '{"model": "clio"}', ASKED, '{"model": "dominique"}', 1),
    (ASKED, '{"at": {"names": ["ingrid halvorsen"]}}', "I am Ann Lee, my clio (order KL-4471) goes "
     "to Dayton", '{"at": {"names": ["eve day"]}}', 1),
    ("order 4471", '{"order": 4471}', "order 9913", '{"order": 4471}', 1),
    ("order 4471", '{"order": 4471}', "order 9913", '{"order": 9913}', 0),
    (ASKED, "Dear Ingrid Halvorsen, KL-4471 is late", ASKED.replace("KL-4471", "QX-9913"),
     "Dear Ingrid Halvorsen, KL-4471 is late", 1),
    ("Ask Will or May", "I will, May", "Ask Eve or Ann", "I will, Ann", 0),
    ("olek here", "thanks olek", "john here", "thanks paul", 1),
    ("my parcel", "We got it, Olek", "my parcel", "We got it, John", 0),
    (ASKED, '<tool_call>{"guest": "Ingrid Halvorsen"}</tool_call>', ASKED.replace(
     "Ingrid Halvorsen", "Ann Lee"), '<tool_call>{"guest": "Eva Lee"}</tool_call>', 1),
    ("Jos\u00e9 said it", '{"who": "Jos\\u00e9"}', "Jan said it", '{"who": "Jan"}', 0),
    # "11" and "post" stand elsewhere by chance, and stay there.
    ("11 River Walk, 11 boxes for the post", "11 River Walk", "26 Elm Row, 11 boxes for the post",
     "26 Elm Row", 0),
    ("post to a@post.test", '{"mail": "a@post.test"}', "post to b@mail.com",
     '{"mail": "b@mail.com"}', 0),
    ("Olek called, ask Olek Bauer", "Olek Bauer did", "Olek called, ask Olek Bauer",
     "Paul Bauer did", 1),
    ("11 River Walk, 11 boxes", "ask at 11 River Walk", "11 River Walk, 11 boxes", "ask at 26 Elm",
     1),
    # The label is no copy.
    ("track it", '{"intent": "track"}', "jane it", '{"intent": "track"}', 0),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "answer", "question", "made", "torn"), TORN)
def test_both_counts_say_what_is_torn(asked, answer, question, made, torn):
    before, after = chat(asked, answer), chat(question, made)
    assert bool(torn_copies(before, after, "intent")) == bool(torn)
    assert bool(answers_torn(before, after, "intent")) == bool(torn)


@pytest.fixture
def lab(tmp_path, base_dir):
    rows = [{"messages": row} for row in rows_of(2, 8)]
    return DataLab(tmp_path, base_dir, rows, label_field=None, pii_ner=True, max_tokens=2_048)


def test_a_scrubber_that_reads_each_turn_alone_loses_rows_and_keeps_none_torn(lab, monkeypatch):
    entry = lab.upto("pii_scrubbing")
    assert value(entry, "rows_torn") <= 1
    assert value(entry, "torn_copies") == 0
    monkeypatch.setattr("tuneline.data.pii.find.detector.agree", lambda pieces: None)
    entry = lab.step("pii_scrubbing")
    assert value(entry, "rows_torn") > 5
    reasons = {reject["reason"].partition(":")[0] for reject in lab.rejected("pii_scrubbing")}
    assert "copy_torn" in reasons
    assert value(entry, "torn_copies") == 0
    lab.agree("pii_scrubbing", entry.verdict)


def test_torn_rows_that_are_kept_turn_step_gate_and_audit(lab, monkeypatch):
    monkeypatch.setattr("tuneline.data.pii.find.detector.agree", lambda pieces: None)
    monkeypatch.setattr("tuneline.data.pii_scrubbing.reason_to_reject", lambda result: None)
    lab.upto("schema_validation")
    entry = lab.step("pii_scrubbing")
    assert value(entry, "torn_copies") > 5
    lab.agree("pii_scrubbing", "fail")


def test_the_audit_finds_what_a_blind_step_let_through(lab, monkeypatch):
    monkeypatch.setattr("tuneline.data.pii.find.detector.agree", lambda pieces: None)
    monkeypatch.setattr("tuneline.data.pii.replace.scrubber.torn_copies", lambda *given: 0)
    lab.upto("distribution_balancing")
    record = lab.step("final_audit")
    assert "pii_scrubbing.torn_copies" in broken(record)
    assert status(lab.run, "pii_scrubbing").verdict == "fail"
