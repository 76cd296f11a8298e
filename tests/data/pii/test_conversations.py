"""What a conversation is about decides its numbers, mailboxes, passwords and addresses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tuneline.config import DataConfig
from tuneline.data.pii import listening
from tuneline.data.pii.scrubber import Scrubber, make_scrubber


@pytest.fixture(scope="module")
def scrubber() -> Scrubber:
    return make_scrubber(DataConfig(source="rows.jsonl"), []).masking()


def talk(scrubber: Scrubber, *turns: str) -> list[str]:
    roles = {"a": "assistant", "u": "user"}
    row = [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]
    return [message["content"] for message in scrubber.scrub(["k"], [row])[0].messages]


# Turns, the one that holds a value, and a part of it that must go.
LEAKS: Sequence[tuple[tuple[str, ...], int, str]] = (
    (("a:what do you see on the slip?", "u:T 5 0 2 dash 8 8 4"), 1, "5 0 2"),
    (("u:the back porch is 6391#",), 0, "6391"),
    (("u:card is 5 2 0 1 um 4 4 7 wait 4 4 7 0 then 1 8 8 2 then 6 1 0 3",), 0, "4 4 7"),
    (("a:your pin?", "u:7316", "a:no", "u:i mean 7361 sorry not 7316"), 3, "7361"),
    (("a:your email please", "u:q u i l l the number 9 at sign yahoo dot com"), 1, "u i l l"),
    (("u:it goes to p, underscore, larsen, 40, at gmail",), 0, "40"),
    (("u:i cant log in with Thimble#82 on the new page",), 0, "Thimble"),
    (("u:Parcel for 9 Clos y Wennol, Porthcawl CF36 5ND please",), 0, "Clos"),
    (("u:postcode: CF36 5ND; name: orla quigley",), 0, "5ND"),
    (("a:address?", "u:77 Marram Rise", "a:is that still Marram?", "u:yes"), 2, "Marram"),
    (("u:dad was born 3rd feb 1944 and mum 17th june 46",), 0, "46"),
)


@pytest.mark.parametrize(("turns", "at", "left"), LEAKS)
def test_a_value_without_a_word_for_it_is_found(scrubber, turns, at, left):
    assert left in turns[at]
    assert left not in talk(scrubber, *turns)[at]


@pytest.mark.parametrize(
    "turns",
    [
        ("a:how many bricks do you need?", "u:1850 of them"),
        ("u:so 23 x 14.50 = 333.50",),
        ("u:my pulse was 71 then 117 then 83",),
        ("u:the series had 144 episodes in 2016",),
        ("u:see you at the station at 7 30",),
        ("u:build 22631 fails with error 1603 after the update",),
        ("u:is B-46278 on its way?",),
        ("u:my order is B-46278",),
        ("a:go on.", "u:the blue kettle came with a red lid and no manual 3c6ac"),
        ("u:i cant log in after update SM991B, 20+30=50",),
        ("u:log in and fill in [username1].Then write down keywords: 'divide', 'remainder'",),
        ("a:when do you pick up the car?", "u:pick it up on the 9th at 10 and drop it off at 3"),
        ("a:your email?", "u:call me at seven"),
    ],
)
def test_what_is_no_identifier_stays(scrubber, turns):
    assert talk(scrubber, *turns) == [turn[2:] for turn in turns]


def test_a_detector_without_open_answers_leaks(monkeypatch):
    for finder in ("open_answers", "spelled"):
        monkeypatch.setattr(listening, finder, lambda *_, **__: iter(()))
    plain = make_scrubber(DataConfig(source="rows.jsonl"), []).masking()
    turns = ("a:what do you see on the slip?", "u:T 5 0 2 dash 8 8 4")
    assert "5 0 2" in talk(plain, *turns)[1]


def test_the_label_of_a_classified_row_is_no_talk_of_logging_in(scrubber):
    question = "u:the carpet 1eef0 came without its box"
    assert talk(scrubber, question, 'a:{"intent": "login"}')[0] == question[2:]
    assert "1eef0" not in talk(scrubber, question, "a:is that what you typed to log in?")[0]


def test_a_number_of_many_rows_is_nobodys_in_an_open_answer():
    texts = ["ring 48213 for help"] * 40
    known = make_scrubber(DataConfig(source="rows.jsonl"), texts).masking()
    turns = ("a:what do you see on the slip?", "u:top left it has 48213 and a blue line")
    assert talk(known, *turns)[1] == turns[1][2:]


def test_a_town_of_an_address_is_no_echo_of_it(scrubber):
    said = talk(scrubber, "a:address?", "u:77 Marram Rise, Seattle", "a:is Seattle right?")
    assert said[2] == "is Seattle right?"
