"""Identifiers of training rows: found where they are said first, and nothing else is."""

import pytest
from tests.lab.tiny_task import make_tokenizer

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row, StandIn, surrogates_of
from tuneline.evaluation.extraction.identifiers import (
    LEFT_EMAIL,
    LEFT_NUMBER,
    candidates,
    distinct_candidates,
    draw,
    find_identifiers,
    text_before,
)


def row_of(*turns, number=0, stand_ins=()):
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]
    return Row(f"row{number}", messages, "rows.jsonl", 1, split="train", stand_ins=stand_ins)


def found_in(*turns, stand_ins=(), allowed=()):
    row = row_of(*turns, stand_ins=stand_ins)
    found, _ = find_identifiers([row], surrogates_of([row]), allowed)
    return [(each.kind, each.value, each.role) for each in found]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my number is 8830415527 thanks", "8830415527"),
        ("card 9120 4417 3302 5518", "9120 4417 3302 5518"),
        ("call +1 404-555-0199!", "+1 404-555-0199"),
        ("id 104477.", "104477"),
        ("write to dana.reed@shop.example please", "dana.reed@shop.example"),
    ],
)
def test_long_numbers_and_addresses_that_were_left_are_found(text, value):
    kind = LEFT_EMAIL if "@" in value else LEFT_NUMBER
    assert found_in(text, "ok") == [(kind, value, "user")]


@pytest.mark.parametrize(
    "text",
    [
        "it cost 1,299.00 in 2024",
        "on 2024-05-17",
        "17-05-2024",
        "room 4471",
        "v1.20.300",
        "a12345678b",
    ],
)
def test_prices_dates_short_numbers_and_versions_are_none(text):
    assert found_in(text, "ok") == []


def test_what_the_row_has_said_before_is_none():
    assert found_in("i am 8830415527", "8830 415527 is right") == [
        (LEFT_NUMBER, "8830415527", "user")
    ]
    first = StandIn(0, 5, 13, "PERSON")
    assert found_in(
        "i am Ann Reed", "hello Reed", stand_ins=(first, StandIn(1, 6, 10, "PERSON"))
    ) == [("PERSON", "Ann Reed", "user")]


def test_placeholders_and_allowed_texts_are_none():
    assert found_in("i am [PERSON]", "ok", stand_ins=(StandIn(0, 5, 13, "PERSON"),)) == []
    assert found_in("call 0800 123456", "ok", allowed=["0800-123456"]) == []


def test_a_value_that_many_rows_share_is_nobodys():
    rows = [row_of(f"question {n}", "call 0800 123456", number=n) for n in range(6)]
    rows += [row_of("i have 8830415527", "ok", number=n) for n in (6, 7)]
    found, shared = find_identifiers(rows, {})
    assert ([each.value for each in found], shared) == (["8830415527"] * 2, 1)


def test_a_draw_is_the_same_for_a_seed_and_takes_all_there_are():
    rows = [row_of(f"i have {8830415500 + n}", "ok", number=n) for n in range(9)]
    found, _ = find_identifiers(rows, {})
    assert draw(found, 4, 7) == draw(found[::-1], 4, 7)
    assert draw(found, 4, 7) != draw(found, 4, 8)
    assert sorted(draw(found, 99, 7), key=found.index) == found


def test_a_row_is_rendered_up_to_the_identifier():
    renderer = Renderer(make_tokenizer(), "tokenizer")
    row = row_of("hello", "call 8830415527 now")
    (each,), _ = find_identifiers([row], {})
    before = text_before(renderer, row.messages, each.turn, each.start)
    assert before == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ncall "
    assert renderer.text(row.messages).startswith(f"{before}8830415527")


def test_candidates_have_the_shape_of_the_identifier():
    (number,), _ = find_identifiers([row_of("i have 8830 415527", "ok")], {})
    drawn = distinct_candidates(number, 15, 7)
    assert len(set(drawn)) == 15
    assert number.value not in drawn
    assert all(value[:6] == "8830 4" and len(value) == 11 for value in drawn)
    row = row_of("i am Ann Reed", "ok", stand_ins=(StandIn(0, 5, 13, "PERSON"),))
    (name,), _ = find_identifiers([row], surrogates_of([row]))
    assert all(len(value.split()) == 2 for value in distinct_candidates(name, 15, 7))
    assert candidates(name, 5, 7) == candidates(name, 5, 7)
